"""What a device would capture: the operations of some work, with the very tensors they were asked for.

Python runs once. Afterwards the same operations are done again on the same memory, in the same order, whatever Python
would do by then; random numbers are drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from ..engine.acting.compile.step_checks import reads_values, same_generator

__all__ = ["Recording"]

Held = Callable[[], Tensor]


class Recording(TorchDispatchMode):
    """Records what is done in this thread inside the ``with`` block, and undoes it at its end: nothing has happened.

    Parameters
    ----------
    generators : sequence of torch.Generator
        Those that may be drawn from, beside torch's global one.
    hold : callable
        Makes of a tensor a callable that finds it again.

    Raises
    ------
    RuntimeError
        Where a device could not go on without doing what has been asked of it, or draws from another generator.
    """

    def __init__(self, generators: Sequence[torch.Generator], hold: Callable[[Tensor], Held]) -> None:
        super().__init__()
        self._hold = hold
        self._generators = [*generators, torch.default_generator]
        self._calls: list[_Call] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: set[int] = set()

    def __enter__(self) -> Recording:
        """Begin."""
        self._states = [generator.get_state() for generator in self._generators]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End; put back what has been written over or drawn."""
        super().__exit__(*error)
        for memory, before in self._before.values():
            memory.copy_(before)
        self._before.clear()
        for generator, state in zip(self._generators, self._states, strict=True):
            if not torch.equal(generator.get_state(), state):
                generator.set_state(state)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do, and note, one operation."""
        kwargs = kwargs or {}
        if reads_values(func, args, kwargs):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        given, spec = tree_flatten((args, kwargs))
        for x in given:
            if isinstance(x, torch.Generator) and not any(same_generator(x, known) for known in self._generators):
                raise RuntimeError("a generator that is drawn from was not registered with the graph")
            if isinstance(x, Tensor):
                self._keep(x.untyped_storage())
        known = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)} - {0}
        answer = func(*args, **kwargs)
        made = [x for x in tree_leaves(answer) if isinstance(x, Tensor)]
        new = [x.untyped_storage().data_ptr() not in known for x in made]
        self._made |= {x.untyped_storage().data_ptr() for x in made} - known
        if any(new) or _writes(func):  # all else are views, which need nobody to make them again
            outputs = [self._hold(x) if is_new else None for x, is_new in zip(made, new, strict=True)]
            inputs = [self._hold(x) if isinstance(x, Tensor) else x for x in given]
            self._calls.append(_Call(func, inputs, [isinstance(x, Tensor) for x in given], spec, outputs))
        return answer

    def _keep(self, memory: torch.UntypedStorage) -> None:
        """Keep what is in memory from before; which operations write is not told by all of them."""
        address = memory.data_ptr()
        if address and address not in self._made and address not in self._before:
            self._before[address] = memory, memory.clone()

    def replay(self) -> None:
        """Do it all again."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # the casts are among the operations
            for call in self._calls:
                call.again()


class _Call:
    """One operation, with all that it takes and where its answer goes."""

    def __init__(
        self, func: Any, inputs: list[Any], held: list[bool], spec: TreeSpec, outputs: list[Held | None]
    ) -> None:
        self._func, self._inputs, self._held, self._spec, self._outputs = func, inputs, held, spec, outputs

    def again(self) -> None:
        """Do it, and write the answer into the memory that it had the first time."""
        found = [x() if held else x for x, held in zip(self._inputs, self._held, strict=True)]
        args, kwargs = self._spec.unflatten(found)
        made = [x for x in tree_leaves(self._func(*args, **kwargs)) if isinstance(x, Tensor)]
        for target, x in zip(self._outputs, made, strict=True):
            if target is not None:
                target().copy_(x)


def _writes(func: Any) -> bool:
    """Whether an operation says that it writes to what it is given."""
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)
