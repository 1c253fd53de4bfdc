"""Finds out which plain attributes of an actor its step reads. A compiled or captured step has their values in it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ...core import BaseActorModule
from ..plain_attributes import NOT_LOOKED_AT, AttributeName, PlainChanges, dotted
from .step_checks import Modes, NoGraph

__all__ = [
    "Alterations",
    "Operations",
    "ReadWatch",
    "Reads",
    "Retraces",
    "StepTable",
    "advise_buffer",
    "changed_since",
    "check_same_operations",
]

T = TypeVar("T")

Reads = frozenset[AttributeName] | None
"""The attributes that a step has read; None if that is not known, so that it may read any."""

Values = tuple[tuple[AttributeName, bool, type, str], ...]
"""Values of plain attributes that the learner has changed: name, whether it is there, type and ``repr``."""

_MOST_ALTERED = 4
"""If changes of one plain attribute have altered the step more often than this, the step runs eagerly."""

_MOST_TRACED = 20
"""If the step was traced more often than this because of one plain attribute, the step runs eagerly, even if all of the
traced steps were equal."""


class StepTable(Generic[T]):
    """Stores an item for each variant of the step: for its modes, and the values of the attributes that it has read.

    Which attributes a step reads depends on the values of others: ``self.epsilon if self.explore else 0.0`` reads
    ``epsilon`` only while ``explore`` is true. So an item stands for all actors that have the same values in those
    attributes that this one step has read: with them the step runs the same way, and reads the same attributes.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[Modes, Reads], dict[Values, T]] = {}  # replaced, since another thread may iterate

    def __iter__(self) -> Iterator[tuple[Modes, T]]:
        """Iterate over the modes and what is known in them, in no particular order."""
        return ((modes, item) for (modes, _), table in self._tables.items() for item in list(table.values()))

    def find(self, modes: Modes, plain: PlainChanges) -> T | None:
        """Return what is known of the step in these modes, with these attributes; None if nothing is."""
        for (modes_of_table, reads), table in self._tables.items():
            if modes_of_table == modes and (item := table.get(_values_of(plain, reads))) is not None:
                return item
        return None

    def put(self, modes: Modes, plain: PlainChanges, reads: Reads, item: T) -> None:
        """Note what is known of a step that has read these attributes, in these modes."""
        table = self._tables.get((modes, reads), {})
        table[_values_of(plain, reads)] = item
        if (modes, reads) not in self._tables:
            self._tables = self._tables | {(modes, reads): table}

    def replace_all(self, item: T) -> None:
        """Replace each item by this one."""
        self._tables = {key: dict.fromkeys(table, item) for key, table in self._tables.items()}


def _values_of(plain: PlainChanges, reads: Reads) -> Values:
    """Return the values of those attributes that the learner has changed and that the step may read."""
    return tuple(
        sorted(
            ((name, change.present, type(change.value), repr(change.value)) for name, change in plain.changes.items()
             if reads is None or name in reads),
            key=lambda entry: entry[0],
        )
    )  # fmt: skip


def changed_since(plain: PlainChanges, before: PlainChanges, reads: Reads) -> list[AttributeName]:
    """Return the attributes that the step may read and that have changed from ``before`` to ``plain``."""
    changed = [name for name, change in plain.changes.items() if change.number > before.number]
    return [name for name in changed if reads is None or name in reads]


class Retraces:
    """Counts how often a step was traced anew because of each plain attribute."""

    def __init__(self) -> None:
        self._n_altered, self._n_traced = Counter[AttributeName](), Counter[AttributeName]()

    def count(self, changed: list[AttributeName], *, altered: bool) -> list[AttributeName]:
        """Count that the step was traced anew; return the attributes for which this has happened too often."""
        self._n_traced.update(changed)
        if altered:
            self._n_altered.update(changed)
        return [n for n in changed if self._n_altered[n] > _MOST_ALTERED or self._n_traced[n] > _MOST_TRACED]


class ReadWatch:
    """Notes which attributes of a copy of the actor are read while its step is tried out.

    Meanwhile the copy's modules have classes of the same names that derive from their own, and note each look-up, also
    by ``getattr`` with a default and of attributes that are not there. The instances keep their attributes.
    """

    def __init__(self) -> None:
        self._classes: dict[type, type] = {}  # one for each class, since some Pythons never release a class
        self._names: dict[int, str] = {}  # of the modules, by their `id`
        self._read = set[AttributeName]()
        self._reads_all = False

    def reads(self, module: nn.Module, same: Callable[[], bool]) -> Reads:
        """Return the attributes that a step reads.

        Parameters
        ----------
        module : Module
            A copy of the actor.
        same : callable
            Tries the step out; returns whether it is what it was without being watched. If it is not, as after
            ``type(self) is Actor``, the step may read any attribute, and so it may if this raises.
        """
        parts = dict(module.named_modules())
        kinds = [type(part) for part in parts.values()]
        self._names = {id(part): name for name, part in parts.items()}
        self._read, self._reads_all = set(), False
        try:
            for part, kind in zip(parts.values(), kinds, strict=True):
                object.__setattr__(part, "__class__", self._watched(kind))
            known = same() and not self._reads_all
        except Exception:  # a class that cannot be replaced, such as those of TorchScript, or derived from
            known = False
        finally:
            for part, kind in zip(parts.values(), kinds, strict=True):
                object.__setattr__(part, "__class__", kind)
        return frozenset(self._read) if known else None

    def _watched(self, kind: type) -> type:
        """Return a subclass whose instances note what is read of them."""
        if kind not in self._classes:
            hooked = next(cls for cls in kind.__mro__ if "__init_subclass__" in vars(cls))
            if hooked not in (BaseActorModule, Generic, object):
                raise TypeError(f"{hooked} has its own `__init_subclass__`")
            look_up: Any = kind.__getattribute__

            def __getattribute__(part: Any, key: str) -> Any:
                if key == "__dict__":  # by `vars(self)` the step may read all of them
                    self._reads_all = self._reads_all or not _is_of_library(sys._getframe(1).f_globals)
                elif key == "__class__":
                    return kind
                elif key not in NOT_LOOKED_AT and id(part) in self._names:
                    self._read.add((self._names[id(part)], key))
                return look_up(part, key)

            namespace = {"__getattribute__": __getattribute__, "__module__": kind.__module__, "__doc__": kind.__doc__}
            # without the metaclass's own `__new__` and `__init__`, which may keep a list of classes
            make: Any = type.__new__
            self._classes[kind] = make(type(kind), kind.__name__, (kind,), namespace)
        return self._classes[kind]


def _is_of_library(names: dict[str, Any]) -> bool:
    """Return whether the global names of a function are those of a module of torch's, or of the engine."""
    return str(names.get("__name__")).startswith(("torch.", "rlplay.engine."))


def advise_buffer(names: Iterable[AttributeName], where: str) -> str:
    """Return the warning that a step runs eagerly, since attributes change what it does."""
    listed = ", ".join(f"`{dotted(name)}`" for name in sorted(names))
    return (
        f"`compile=True`: the actor's step runs eagerly {where}, since its plain attribute {listed} changes what the "
        "step does: keep it in a buffer (`register_buffer`), which compiled and captured steps read."
    )


class Alterations:
    """Whether changes of plain attributes have made a step differ from the captured one.

    Attributes
    ----------
    operations : dict
        The operations of the captured steps, by the modes.
    """

    def __init__(self) -> None:
        self.operations: dict[Modes, list[str]] = {}
        self._watch, self._retraces = ReadWatch(), Retraces()
        self._altered, self._for_ever = StepTable[bool](), False

    def begin(self, captured: Iterable[Modes], plain: PlainChanges) -> None:
        """Note that steps were captured in these modes, with these attributes."""
        self._altered = StepTable()
        for modes in captured:
            self._altered.put(modes, plain, None, False)

    def known(self, modes: Modes, plain: PlainChanges) -> bool | None:
        """Return whether the step differs with these attributes; None if :meth:`judge` has to find out.

        True for ever once changes of an attribute have made the step differ too often.
        """
        return True if self._for_ever else self._altered.find(modes, plain)

    def judge(
        self,
        twin: nn.Module,
        modes: Modes,
        plain: PlainChanges,
        before: PlainChanges,
        operations_of_twin: Callable[[], list[str]],
    ) -> str:
        """Find out whether the step differs with these attributes, which ``twin`` has; return the first warning."""
        warned = any(altered for _, altered in self._altered)
        operations = operations_of_twin()
        reads = self._watch.reads(twin, lambda: operations_of_twin() == operations)
        changed = changed_since(plain, before, reads)
        differs = operations != self.operations[modes]
        often = self._retraces.count(changed, altered=differs)
        self._for_ever = bool(often)
        self._altered.put(modes, plain, reads, differs or self._for_ever)
        if self._for_ever:
            return advise_buffer(often, "from now on")
        why = advise_buffer(changed, "while it has another value than at the first fragment")
        return why if differs and not warned else ""


def check_same_operations(run: Callable[[Operations], object]) -> None:
    """Make a step twice, and check that it runs the same operations both times.

    Parameters
    ----------
    run : callable
        Makes the step inside of a ``with`` block of the :class:`Operations` that it is given.

    Raises
    ------
    NoGraph
        The operations differ, as with a counter in a global variable.
    """
    once, again = Operations(), Operations()
    run(once)
    run(again)
    if once.listed != again.listed:
        raise NoGraph("it computes with other numbers each time, which come neither from buffers nor from its inputs")


class Operations(TorchDispatchMode):
    """Lists the PyTorch operations of this thread inside the ``with`` block, with all that is a number in them.

    Attributes
    ----------
    listed : list of str
        Equal for two steps that do the same, on tensors of the same forms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """List one operation and run it."""
        new = func.overloadpacket in (torch.ops.aten.lift_fresh, torch.ops.aten.lift_fresh_copy)

        def described(x: Any) -> Any:
            if isinstance(x, torch.Generator):
                return "generator"
            if isinstance(x, Tensor):
                return (x.dtype, tuple(x.shape), x.tolist() if new else None)
            return x

        self.listed.append(repr((str(func), tree_map(described, (args, kwargs)))))
        return func(*args, **(kwargs or {}))
