"""Finds out which plain attributes of an actor its step reads. A compiled or captured step has their values in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..copying.walk import Walk
from ..plain_attributes import AttributeName, PlainChanges, dotted
from .step_checks import Modes

__all__ = [
    "Alterations",
    "AttributeReads",
    "Operations",
    "Values",
    "Variant",
    "advise_buffer",
    "is_unread",
    "values_of",
]

Values = tuple[tuple[AttributeName, bool, type, str], ...]
"""Values of plain attributes that the learner has changed: name, whether it is there, type and ``repr``."""

Variant = tuple[Modes, Values]
"""What a step was compiled or captured for."""

_MISSING = object()

_MOST_ALTERED = 4
"""If changes of one plain attribute have altered the step more often than this, the step runs eagerly."""

_MOST_TRACED = 20
"""If the step was traced more often than this because of one plain attribute, the step runs eagerly, even if all of the
traced steps were equal."""


class AttributeReads:
    """What is known of the plain attributes that a step reads."""

    def __init__(self) -> None:
        self._unread: dict[Modes, frozenset[AttributeName]] = {}
        self._n_altered, self._n_traced = Counter[AttributeName](), Counter[AttributeName]()

    def unread(self, modes: Modes) -> frozenset[AttributeName]:
        """Return the attributes of which it is known that the step does not read them in these modes."""
        return self._unread.get(modes, frozenset())

    def note_unread(self, modes: Modes, names: Iterable[AttributeName]) -> None:
        """Note that the step does not read these attributes in these modes."""
        self._unread[modes] = self.unread(modes).union(names)

    def changed_since(self, modes: Modes, plain: PlainChanges, before: PlainChanges) -> list[AttributeName]:
        """Return the attributes that have changed in between and may be read in these modes."""
        changed = [name for name, change in plain.changes.items() if change.number > before.number]
        return [name for name in changed if name not in self.unread(modes)]

    def without(self, variant: Variant, modes: Modes, names: Collection[AttributeName]) -> Variant:
        """Return a variant without these attributes, if it is one in these modes."""
        left = tuple(entry for entry in variant[1] if entry[0] not in names)
        return (modes, left) if variant[0] == modes else variant

    def count(self, changed: list[AttributeName], *, altered: bool) -> list[AttributeName]:
        """Count that the step was traced anew; return the attributes for which this has happened too often."""
        self._n_traced.update(changed)
        if altered:
            self._n_altered.update(changed)
        return [n for n in changed if self._n_altered[n] > _MOST_ALTERED or self._n_traced[n] > _MOST_TRACED]


def values_of(plain: PlainChanges, unread: Iterable[AttributeName]) -> Values:
    """Return the values of the attributes that the learner has changed, without those that are not read."""
    return tuple(
        sorted(
            ((name, change.present, type(change.value), repr(change.value)) for name, change in plain.changes.items()
             if name not in unread),
            key=lambda entry: entry[0],
        )
    )  # fmt: skip


def is_unread(module: nn.Module, name: AttributeName, unchanged: Callable[[], bool]) -> bool:
    """Return whether the step does not read an attribute.

    Parameters
    ----------
    module : Module
        A copy of the actor, whose attribute is taken away meanwhile.
    unchanged : callable
        Tries the step out; returns whether it is as before. What it raises counts as False.
    """
    part, key = module.get_submodule(name[0]), name[1]
    if hasattr(type(part), key):  # without the attribute of the instance, the step would read that of the class
        from_library = type(part).__module__.partition(".")[0] == "torch"
        return not from_library and key not in Walk(module, with_code=True).used_names
    value = part.__dict__.pop(key, _MISSING)
    try:
        return unchanged()
    except Exception:  # most probably an AttributeError: the step has missed it
        return False
    finally:
        if value is not _MISSING:
            part.__dict__[key] = value


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
        self._reads = AttributeReads()
        self._altered: dict[Variant, bool] = {}

    def begin(self, captured: Iterable[Modes], plain: PlainChanges) -> None:
        """Note that steps were captured in these modes, with these attributes."""
        self._altered = {(modes, values_of(plain, ())): False for modes in captured}

    def known(self, modes: Modes, plain: PlainChanges) -> bool | None:
        """Return whether the step differs with these attributes; None if :meth:`judge` has to find out."""
        return self._altered.get((modes, values_of(plain, self._reads.unread(modes))))

    def judge(
        self,
        twin: nn.Module,
        modes: Modes,
        plain: PlainChanges,
        before: PlainChanges,
        operations_of_twin: Callable[[], list[str]],
    ) -> str:
        """Find out whether the step differs with these attributes, which ``twin`` has; return the first warning."""
        expected, warned = self.operations[modes], any(self._altered.values())
        changed = self._reads.changed_since(modes, plain, before)
        altered = operations_of_twin() != expected
        if not altered:
            unread = [name for name in changed if is_unread(twin, name, lambda: operations_of_twin() == expected)]
            self._reads.note_unread(modes, unread)
            known = {self._reads.without(at, modes, unread): differs for at, differs in self._altered.items()}
            self._altered = known | self._altered
        altered = altered or bool(self._reads.count(changed, altered=False))
        self._altered[modes, values_of(plain, self._reads.unread(modes))] = altered
        why = advise_buffer(changed, "while it has another value than at the first fragment")
        return why if altered and not warned else ""


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
