"""Saves environments, with all wrappers and inner environments, and restores them in place.

All objects stay where they are: what is saved are the attributes of each part. So it does not matter how a part itself
would be pickled, and references between parts, and from outside, stay right. An innermost environment that can save
itself is asked for its state instead.

====================================  ==================================================================================
innermost part has                    what is saved of it
====================================  ==================================================================================
``get_state`` and ``set_state``       what ``get_state`` returns
``clone_state``, ``restore_state``    what ``clone_state`` returns, random numbers included (ale-py: and :mod:`.ale`)
neither                               all attributes, by pickling
====================================  ==================================================================================

In the first two cases the random generator and the spaces that gym's base class holds are saved beside.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ....contexts import contextmanager
from ...concurrency.progress import Progress
from ..dialects import takes
from .ale import restore_ale, save_ale
from .functions import fingerprint, functions_in, named_in_script, refers_to_constants
from .parts import Part, attributes_of, kind_of, parts_of, stays
from .pickling import CODE, FUNCTION, Key, Survey, common_key, dumps, find_culprit, loads

__all__ = ["restore_environments", "save_environments"]

_OF_BASE_CLASS = ("_np_random", "_np_random_seed", "np_random", "action_space", "observation_space")

_SCRIPT, _OTHER = "script", "environment"
"""The first elements of keys: for objects with a name in the user's script, and for objects of another environment."""


class _Plain:
    pass


class _Contents(NamedTuple):
    """What is saved of an environment."""

    number: int
    parts: list[Part]
    attributes: list[dict[str, Any]]
    """Those of each part that are saved."""
    states: dict[int, Any]
    """What the own methods of a part have returned, by the position of the part."""

    @property
    def value(self) -> Any:
        """What is pickled."""
        return self.attributes, self.states


def save_environments(
    envs: Sequence[Any], first: int, progress: Progress, *, whole: bool = True
) -> Sequence[dict[str, Any] | None]:
    """Return the state of each environment, as a dict of strings and bytes. The environments stay as they are.

    What several of them refer to is saved apart, as ``common`` in each of their states.

    Parameters
    ----------
    first : int
        The number of the first environment in the feed, for messages.
    progress : Progress
        Where it is noted which environment is being saved.
    whole : bool
        Unless it is true, None is returned for each environment.

    Raises
    ------
    TypeError
        Something in one of them cannot be saved; the message has the path to it.
    """
    if not whole:
        return [None] * len(envs)
    met, found, saved = dict[int, int](), list[_Contents](), list[bytes]()
    for number, env in enumerate(envs, first):
        with progress.during("env.save", number):
            found.append(_contents_of(env, number))
    objects = {one.number: _kept_objects(one.parts) for one in found}
    own_kept = [_by_id(pairs) for pairs in objects.values()]
    survey = Survey(_by_id(_kept_by_all(objects)))
    for contents, own in zip(found, own_kept, strict=True):
        with progress.during("env.save", contents.number), _refusing(contents, own, survey):
            survey.look_at(contents.value, own, contents.number)
    survey.finish()
    for contents, own in zip(found, own_kept, strict=True):
        with progress.during("env.save", contents.number), _refusing(contents, own, survey):
            saved.append(dumps(contents.value, own, survey, met))
    common = {}
    if met:
        with _refusing(found[0], {}, survey):
            common = {"common": dumps([survey.common[key] for key in met], {}, survey)}
    return [
        {"kinds": [kind_of(part.env) for part in contents.parts], "data": data, **common}
        for contents, data in zip(found, saved, strict=True)
    ]


def _contents_of(env: Any, number: int) -> _Contents:
    parts = parts_of(env)
    attributes: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    for k, part in enumerate(parts):
        own = _own_methods(part)
        if own is None:
            _check_whole(part, number)
            attributes.append({name: x for name, x in attributes_of(part.env).items() if not stays(part.env, name)})
        else:
            attributes.append({name: x for name, x in attributes_of(part.env).items() if name in _OF_BASE_CLASS})
            try:
                states[k] = own[0]()
            except Exception as error:
                raise TypeError(
                    f"environment {number} cannot be saved: `get_state` or `clone_state` of `{part.path}`, a "
                    f"{kind_of(part.env)}, raised {error!r}. {_remedy(part)}."
                ) from error
    return _Contents(number, parts, attributes, states)


def restore_environments(envs: Sequence[Any], saved: Sequence[dict[str, Any]], first: int, progress: Progress) -> None:
    """Restore the states of environments that :func:`save_environments` returned, which may have saved more of them.

    The states are unpickled, which may run any code that is in them. ``first`` and ``progress`` are as there.

    Raises
    ------
    ValueError
        An environment consists of other parts than the one that was saved, or its state cannot be read.
    """
    parts = {number: parts_of(env) for number, env in enumerate(envs, first)}
    for (number, own), one in zip(parts.items(), saved, strict=True):
        kinds = [kind_of(part.env) for part in own]
        if kinds != one["kinds"]:
            raise ValueError(
                f"the state is of another environment: environment {number} was {' > '.join(one['kinds'])}, and is "
                f"{' > '.join(kinds)}. Pass environments that are made and wrapped alike."
            )
    objects = {number: _kept_objects(own) for number, own in parts.items()}
    kept, common = dict(_kept_by_all(objects)), dict[bytes, dict[Key, Any]]()
    for (number, own), one in zip(parts.items(), saved, strict=True):
        with progress.during("env.restore", number):
            shared = one.get("common")
            if shared is not None and shared not in common:
                common[shared] = {common_key(k): x for k, x in enumerate(_read(shared, kept, number))}
            here = ChainMap(dict(objects[number]), kept, common[shared] if shared is not None else {})
            _restore(own, _read(one["data"], here, number), number)


def _read(data: bytes, kept: Mapping[Key, Any], number: int) -> Any:
    try:
        return loads(data, kept)
    except Exception as error:
        raise ValueError(f"the state of environment {number} cannot be read: {error!r}.") from error


def _restore(parts: list[Part], value: Any, number: int) -> None:
    attributes, states = value
    for k, (part, values) in enumerate(zip(parts, attributes, strict=True)):
        own = attributes_of(part.env)
        if k not in states:
            for name in [name for name in own if name not in values and not stays(part.env, name)]:
                del own[name]
        own.update(values)
    for k, state in states.items():
        methods = _own_methods(parts[k])
        if methods is None:
            raise ValueError(f"environment {number}: `{parts[k].path}` can no longer restore its own state.")
        try:
            methods[1](state)
        except Exception as error:
            raise ValueError(f"the state of environment {number} does not fit `{parts[k].path}`: {error!r}.") from error


def _kept_by_all(objects: Mapping[int, Sequence[tuple[Key, Any]]]) -> list[tuple[Key, Any]]:
    """Return what is not pickled of several environments, with keys that begin with the number of the environment.

    What has a name in the user's script is the same for all of them, and so are functions with equal fingerprints.
    """
    return [
        (key if key[0] in (_SCRIPT, FUNCTION, CODE) else (_OTHER, n, *key), one)
        for n, own in objects.items()
        for key, one in own
    ]


def _by_id(pairs: Iterable[tuple[Key, Any]]) -> dict[int, Key]:
    """Return the keys of objects that are not pickled, by their ``id()``.

    For a function that is made anew that is the ``id()`` of its code.
    """
    return {id(one.__code__ if key[0] == CODE else one): key for key, one in pairs}


def _kept_objects(parts: list[Part]) -> list[tuple[Key, Any]]:
    """Return what is not pickled, with keys: the parts, functions without a name, and what has a name in the script.

    Functions with equal fingerprints have the same key. If an object has several keys, the last one counts.
    """
    seen = set[int]()
    functions = [one for part in parts for x in attributes_of(part.env).values() for one in functions_in(x, seen)]
    return [
        *(((k,), part.env) for k, part in enumerate(parts)),
        *(_kept_function(one) for one in functions),
        *(((_SCRIPT, name), one) for name, one in named_in_script(parts).items()),
    ]


def _kept_function(function: Any) -> tuple[Key, Any]:
    """Return the key of a function, or that of its code if what it refers to may change; and the function."""
    kind, of = (FUNCTION, function) if refers_to_constants(function) else (CODE, function.__code__)
    return (kind, f"{function.__module__}.{function.__qualname__}", fingerprint(of)), function


def _own_methods(part: Part) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """Return the methods by which an innermost environment saves and restores itself; None if it has none."""
    if not part.innermost:
        return None
    if any(f"{cls.__module__.partition('.')[0]}.{cls.__name__}" == "ale_py.AtariEnv" for cls in type(part.env).__mro__):
        return partial(save_ale, part.env), partial(restore_ale, part.env)
    for save, restore in (("get_state", "set_state"), ("clone_state", "restore_state")):
        if callable(getattr(type(part.env), save, None)) and callable(getattr(type(part.env), restore, None)):
            method = getattr(part.env, save)
            options = {"include_rng": True} if takes(method, "include_rng") else {}
            return partial(method, **options), getattr(part.env, restore)
    return None


def _check_whole(part: Part, number: int) -> None:
    """Check that all that a part holds is in its attributes.

    Raises
    ------
    TypeError
        Its class has slots, or is written in another language.
    """
    # a class written in C, or with slots, has larger instances than a plain class
    if not hasattr(part.env, "__dict__") or type(part.env).__basicsize__ > _Plain.__basicsize__:
        raise TypeError(
            f"environment {number} cannot be saved: `{part.path}`, a {kind_of(part.env)}, keeps something outside of "
            f"its `__dict__` (slots, or a class that is not written in Python). {_remedy(part)}."
        )


@contextmanager
def _refusing(contents: _Contents, kept: Mapping[int, Key], survey: Survey) -> Iterator[None]:
    """Raise an error that names what cannot be pickled, if the ``with`` block raises one."""
    try:
        yield
    except Exception as error:
        raise _refusal(contents, kept, survey) or error from error


def _refusal(contents: _Contents, kept: Mapping[int, Key], survey: Survey) -> TypeError | None:
    """Return an error that names what cannot be pickled; None if that is not found."""
    pairs = zip(contents.parts, contents.attributes, strict=True)
    named = [(part, name, one) for part, own in pairs for name, one in own.items()]
    named += [(contents.parts[k], "<its own state>", state) for k, state in contents.states.items()]
    for part, name, value in named:
        found = find_culprit(value, f"{part.path}.{name}", lambda x: dumps(x, kept, survey))
        if found is not None:
            where, culprit, why = found
            return TypeError(
                f"environment {contents.number} cannot be saved: `{where}`, a {kind_of(culprit)}, does not pickle: "
                f"{why}. {_remedy(part)}."
            )
    return None


def _remedy(part: Part) -> str:
    """Return what the user can do about a part of an environment that cannot be saved."""
    first = (
        "Give it methods `get_state()` and `set_state(state)`"
        if part.innermost
        else "Only the innermost environment is asked for a state of its own, so keep such a thing elsewhere than in "
        "an attribute of what is around it, as in a global variable"
    )
    return f"{first}; or save with `feed.state_dict(environments='restart')`, which begins new episodes"
