"""Exceptions that are sent between processes: what the receiver cannot restore arrives as text, never gets lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from textwrap import dedent

import pytest

from rlplay.engine.concurrency.exceptions import RemoteTraceback, add_note, pack, unpack

MODULE = """
    class Plain(Exception):
        pass


    class Deep(Plain, ValueError):
        def __init__(self, code, *, where):
            super().__init__(f"{code} at {where}")
            self.code = code


    class Group(ExceptionGroup):
        pass
"""

SENDER = """
    import sys
    sys.path.insert(0, {folder!r})
    import vendor
    from rlplay.engine.concurrency.exceptions import add_note, pack

    def explode():
        raise {error}

    try:
        explode()
    except BaseException as error:
        add_note(error, "environment 3")
        sys.stdout.buffer.write(pack(error))
"""


def sent(error, tmp_path):
    """Return an exception that another process has raised; only that process can import the module `vendor`."""
    groups = sys.version_info >= (3, 11)
    module = dedent(MODULE) if groups else dedent(MODULE).partition("class Group")[0]
    (tmp_path / "vendor.py").write_text(module)
    script = dedent(SENDER).format(folder=str(tmp_path), error=error)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return unpack(done.stdout)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("vendor.Plain('joint 7 is out of range')", "Plain: joint 7 is out of range"),
        ("vendor.Deep(7, where='the knee')", "Deep: 7 at the knee"),
        ("type('Own', (vendor.Plain,), {})('made on the way')", "Own: made on the way"),
        ("ValueError(vendor.Plain('inside'))", "ValueError: inside"),
    ],
)
def test_an_exception_that_cannot_be_imported_arrives_with_its_name_message_notes_and_traceback(error, text, tmp_path):
    found = sent(error, tmp_path)
    assert type(found) is RuntimeError
    assert str(found) == text
    assert found.__notes__ == ["rlplay: environment 3"]
    assert isinstance(found.__cause__, RemoteTraceback)
    assert "in explode" in str(found.__cause__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
@pytest.mark.parametrize("kind", ["ExceptionGroup", "vendor.Group"])
def test_of_an_exception_group_each_member_arrives_as_well_as_it_can(kind, tmp_path):
    inner = "ExceptionGroup('in', [KeyError('k')])"
    found = sent(f"{kind}('two at once', [OSError(2, 'no file'), vendor.Plain('joint 7'), {inner}])", tmp_path)
    assert isinstance(found, ExceptionGroup)  # noqa: F821
    assert "two at once" in str(found)
    os_error, plain, group = found.exceptions
    assert (type(os_error), os_error.errno) == (FileNotFoundError, 2)
    assert (type(plain), str(plain)) == (RuntimeError, "Plain: joint 7")
    assert isinstance(group.exceptions[0], KeyError)
    assert found.__notes__ == ["rlplay: environment 3"]
    assert "joint 7" in str(found.__cause__)


class Holding(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock, self.code = threading.Lock(), 7


class Decorated(Exception):
    """Its message is not its argument, so that making it anew from `args` would decorate it twice."""

    def __init__(self, text):
        super().__init__(f"<{text}>")


class Silent(Exception):
    def __str__(self):
        raise ZeroDivisionError("in __str__")


class Reduced(Exception):
    """Pickles as something that is no exception."""

    def __reduce__(self):
        return str, ("nothing",)


class Missing(FileNotFoundError):
    """An OSError, whose message and errno are set by the constructor of OSError."""

    def __init__(self, name, folder):
        super().__init__(2, "no such level", f"{folder}/{name}")


class Coded(SystemExit):
    def __init__(self, code, *, why):
        super().__init__(code)
        self.why = why


class Anew(Exception):
    def __new__(cls, first, second):
        return super().__new__(cls)


class Locked(Exception):
    """Its message needs an attribute that cannot be sent."""

    def __init__(self):
        self.lock = threading.Lock()

    def __str__(self):
        return f"locked: {self.lock.locked()}"


def passed_on(error):
    try:
        raise error
    except BaseException as caught:
        add_note(caught, "environment 3")
        return unpack(pack(caught))


def test_attributes_that_cannot_be_sent_are_left_out_and_named():
    found = passed_on(Holding("held"))
    assert (type(found), str(found), found.code, hasattr(found, "lock")) == (Holding, "held", 7, False)
    assert found.__notes__ == ["rlplay: environment 3"]
    assert "could not be sent: lock" in str(found.__cause__)


@pytest.mark.parametrize(
    ("error", "message", "attributes"),
    [
        (Decorated("text"), "<text>", {}),
        (Missing("7", "levels"), "[Errno 2] no such level: 'levels/7'", {"errno": 2, "filename": "levels/7"}),
        (Coded(3, why="no display"), "3", {"code": 3, "why": "no display"}),
        (Anew("first", "second"), "('first', 'second')", {}),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, BaseException) else "",
)
def test_neither_type_nor_message_is_changed_by_a_constructor_that_takes_other_arguments(error, message, attributes):
    found = passed_on(error)
    assert (type(found), str(found)) == (type(error), message)
    assert {name: getattr(found, name) for name in attributes} == attributes


def test_an_exception_that_pickles_without_its_attributes_keeps_its_notes():
    try:
        json.loads("{")
    except json.JSONDecodeError as error:  # has a `__reduce__` of its own, as many exceptions have
        error.__notes__ = ["in the file of levels"]
        found = passed_on(error)
    assert type(found) is json.JSONDecodeError
    assert found.__notes__ == ["in the file of levels", "rlplay: environment 3"]


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (Silent("x"), "Silent"),
        (Reduced("y"), "y"),
        (KeyError(threading.Lock()), "KeyError: <unlocked _thread.lock"),
        (Locked(), "Locked: locked: False"),
    ],
)
def test_whatever_cannot_be_pickled_arrives_as_text(error, starts):
    found = passed_on(error)
    assert isinstance(found, Silent) or str(found).startswith(starts)
    assert found.__notes__ == ["rlplay: environment 3"]
    assert type(found.__cause__) is RemoteTraceback


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


def test_an_exception_that_takes_no_assignments_is_passed_on_whole():
    found = passed_on(Frozen(7))
    assert (type(found), found.code, found.__notes__) == (Frozen, 7, ["rlplay: environment 3"])
    assert "Frozen: 7" in str(found.__cause__)
