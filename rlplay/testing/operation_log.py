"""Logs the operations of some work with the tensors that they use, as a device does when it captures a graph.

The Python code of the work runs once. A replay runs the same operations on the same memory in the same order, even if
the Python code would now behave differently. Random numbers are drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from ..engine.acting.compile.step_checks import reads_values, same_generator

__all__ = ["OperationLog"]

TensorGetter = Callable[[], Tensor]
"""Returns the same tensor at each call, without necessarily keeping its memory alive."""


class OperationLog(TorchDispatchMode):
    """Logs the operations of this thread inside the ``with`` block, and undoes their effects when the block ends.

    Parameters
    ----------
    generators : sequence of torch.Generator
        The generators that the work may draw from, besides torch's global one.
    getter : callable
        Makes a :data:`TensorGetter` for a tensor.

    Raises
    ------
    RuntimeError
        Raised for an operation that needs a tensor's value on the host, or that draws from a generator not in
        ``generators``. A device could not capture such an operation.
    """

    def __init__(self, generators: Sequence[torch.Generator], getter: Callable[[Tensor], TensorGetter]) -> None:
        super().__init__()
        self._getter = getter
        self._generators = [*generators, torch.default_generator]
        self._states: list[Tensor] = []  # states of the generators at the start of the block
        self._operations: list[_Operation] = []
        # by address: memory that was not allocated by the work, and a copy of its contents at the start of the block
        self._saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._allocated: set[int] = set()  # addresses of memory that the work itself has allocated

    def __enter__(self) -> OperationLog:
        """Start to log operations."""
        self._states = [generator.get_state() for generator in self._generators]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop, and restore the contents of all memory and the states of the generators."""
        super().__exit__(*error)
        for memory, contents in self._saved.values():
            memory.copy_(contents)
        self._saved.clear()
        for generator, state in zip(self._generators, self._states, strict=True):
            if not torch.equal(generator.get_state(), state):
                torch.Generator.set_state(generator, state)  # without the effects of a subclass, as CUDA restores it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and log one operation."""
        kwargs = kwargs or {}
        if reads_values(func, args, kwargs):
            # the text of CUDA's own error
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        arguments, spec = tree_flatten((args, kwargs))
        for x in arguments:
            if isinstance(x, torch.Generator) and not any(same_generator(x, y) for y in self._generators):
                raise RuntimeError("a generator that is drawn from was not registered with the graph")
            if isinstance(x, Tensor):
                self._save(x.untyped_storage())
        input_addresses = {x.untyped_storage().data_ptr() for x in arguments if isinstance(x, Tensor)} - {0}
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        is_new = [x.untyped_storage().data_ptr() not in input_addresses for x in outputs]
        self._allocated |= {x.untyped_storage().data_ptr() for x in outputs} - input_addresses
        if any(is_new) or _writes(func):  # any other operation only makes views, and need not be repeated
            targets = [self._getter(x) if new else None for x, new in zip(outputs, is_new, strict=True)]
            is_tensor = [isinstance(x, Tensor) for x in arguments]
            inputs = [self._getter(x) if isinstance(x, Tensor) else x for x in arguments]
            self._operations.append(_Operation(func, inputs, is_tensor, spec, targets))
        return result

    def _save(self, memory: torch.UntypedStorage) -> None:
        """Save the contents of an input. All inputs are saved, since some operations do not declare what they write."""
        address = memory.data_ptr()
        if address and address not in self._allocated and address not in self._saved:
            self._saved[address] = memory, memory.clone()

    @property
    def names(self) -> list[str]:
        """The names of the operations, without those that only make views."""
        return [operation.name for operation in self._operations]

    def replay(self) -> None:
        """Run all logged operations again."""
        # the casts were logged; autocast must not cast again. The work may have made tensors in inference mode
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for operation in self._operations:
                operation.run()


class _Operation:
    """One logged operation.

    Parameters
    ----------
    func : torch operator
        The operation.
    inputs : list
        The arguments, with a :data:`TensorGetter` in place of each tensor.
    is_tensor : list of bool
        Which of ``inputs`` are tensors.
    spec : TreeSpec
        Converts the list of arguments to args and kwargs.
    targets : list of TensorGetter or None
        The memory of each output of the first run; None for an output in the memory of an input.
    """

    def __init__(
        self,
        func: Any,
        inputs: list[Any],
        is_tensor: list[bool],
        spec: TreeSpec,
        targets: list[TensorGetter | None],
    ) -> None:
        self._func, self._inputs, self._is_tensor, self._spec, self._targets = func, inputs, is_tensor, spec, targets

    @property
    def name(self) -> str:
        """The name of the operation, without ``aten`` and without the overload."""
        return str(self._func.overloadpacket).removeprefix("aten.")

    def run(self) -> None:
        """Run the operation, and copy its outputs into the memory of the first run."""
        inputs = [x() if is_tensor else x for x, is_tensor in zip(self._inputs, self._is_tensor, strict=True)]
        args, kwargs = self._spec.unflatten(inputs)
        outputs = [x for x in tree_leaves(self._func(*args, **kwargs)) if isinstance(x, Tensor)]
        for target, x in zip(self._targets, outputs, strict=True):
            if target is not None:
                target().copy_(x)


def _writes(func: Any) -> bool:
    """Return whether the schema of an operation declares that it writes to an argument."""
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)
