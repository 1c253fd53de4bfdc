"""The memory of arrays and of tensors on the host, by addresses: what has shared memory shares it again once restored.

Imports no torch: an environment that has tensors has imported it.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Block", "Span", "blocks_of", "is_tensor", "span_of", "view_of", "with_gradient"]

_ALIGNMENT = 16


class Span(NamedTuple):
    """The addresses that an array or a tensor reaches: from ``start`` up to, but without, ``end``."""

    place: str
    """Which addresses these are: of the host, or of a device."""
    start: int
    end: int
    overlaps_itself: bool
    """Whether several of its elements lie at one address."""
    owner: int
    """The number of the environment that reaches it."""


class Block:
    """A piece of the host's memory in which arrays and tensors lie."""

    def __init__(self, start: int, end: int, owners: frozenset[int] = frozenset()) -> None:
        self.start, self.end, self.owners = start, end, owners

    def __reduce__(self) -> Any:
        return _memory, (self.start % _ALIGNMENT, ctypes.string_at(self.start, self.end - self.start))


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, of a subclass too."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def span_of(value: Any, owner: int) -> Span | None:
    """Return the addresses that an array or a tensor reaches; None for anything else, or if it is empty."""
    if isinstance(value, np.ndarray):
        if not value.size:
            return None
        return _span("cpu", _address(value), value.shape, value.strides, value.itemsize, owner)
    if is_tensor(value) and not _is_parameter(value) and _is_dense(value) and value.numel():
        strides = [step * value.itemsize for step in value.stride()]
        return _span(str(value.device), value.data_ptr(), value.shape, strides, value.itemsize, owner)
    return None


def blocks_of(spans: Iterable[Span]) -> list[tuple[str, Block]]:
    """Return each piece of memory that several spans share, or in which one overlaps itself, with its place; sorted."""
    blocks: list[tuple[str, Block]] = []
    joined: list[Span] = []
    end = 0
    for span in [*sorted(spans), Span("", 0, 0, False, 0)]:
        if joined and (span.place != joined[0].place or span.start >= end):
            if len(joined) > 1 or joined[0].overlaps_itself:
                owners = frozenset(one.owner for one in joined)
                blocks.append((joined[0].place, Block(joined[0].start, end, owners)))
            joined = []
        end = max(end, span.end) if joined else span.end
        joined.append(span)
    return blocks


def view_of(value: Any, block: Block | None) -> tuple[Any, ...] | None:
    """Return how an array or a tensor is pickled as a view of a block; None if it cannot be kept in this way.

    Parameters
    ----------
    block : Block or None
        The block that it lies in. Without one, a tensor gets memory of its own, and so does an array with gaps between
        its elements, since the last bits of a product may depend on these. Other arrays are not pickled here.
    """
    if type(value) is np.ndarray and not value.dtype.hasobject:
        if block is None:
            block = _block_with_gaps(value)
        if block is None:
            return None
        offset = _address(value) - block.start
        return _array, (block, offset, value.dtype, value.shape, value.strides, value.flags.writeable)
    if not is_tensor(value) or type(value) is not sys.modules["torch"].Tensor or not _is_dense(value):
        return None
    if value.device.type != "cpu" or value.is_conj() or value.is_neg() or value.grad_fn is not None:
        return None
    if block is None:
        span = span_of(value, 0)
        block = Block(span.start, span.end) if span is not None else Block(0, 0)
    offset = value.data_ptr() - block.start if value.numel() else 0
    dtype = str(value.dtype).removeprefix("torch.")
    made = _tensor, (block, offset, dtype, tuple(value.shape), value.stride(), value.requires_grad)
    return (*made, vars(value)) if vars(value) else made


def _block_with_gaps(array: Any) -> Block | None:
    """Return the memory of an array whose elements do not lie side by side; None for any other."""
    if array.flags.forc or not array.size:
        return None
    span = _span("cpu", _address(array), array.shape, array.strides, array.itemsize, 0)
    return Block(span.start, span.end)


def with_gradient(value: Any, reduced: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Return how a tensor that has a gradient is pickled; ``reduced`` for anything else.

    Parameters
    ----------
    reduced : tuple or None
        How it is pickled without the gradient; None: as it reduces itself.
    """
    if not is_tensor(value) or not value.is_leaf or value.grad is None:
        return reduced
    make, args, *others = value.__reduce_ex__(5) if reduced is None else reduced
    return _tensor_with_gradient, (make, args, value.grad), *others


def _span(place: str, at: int, shape: Any, strides: Any, itemsize: int, owner: int) -> Span:
    steps = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
    start, end = at + sum(step for step in steps if step < 0), at + sum(step for step in steps if step > 0) + itemsize
    return Span(place, start, end, int(np.prod(shape, dtype=object)) * itemsize > end - start, owner)


def _address(value: Any) -> int:
    return int(value.__array_interface__["data"][0])


def _is_parameter(tensor: Any) -> bool:
    """Whether a tensor is a parameter: pickling it pickles the tensor of its data, which lies in the same memory."""
    return isinstance(tensor, sys.modules["torch"].nn.Parameter)


def _is_dense(tensor: Any) -> bool:
    """Whether a tensor has memory that can be looked at."""
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    try:
        return bool(tensor.data_ptr()) or not tensor.numel()
    except Exception:  # subclasses that have no storage raise different types
        return False


def _memory(lead: int, data: bytes) -> Any:
    """Return a copy of a block, aligned as the block was."""
    memory = np.empty(lead + len(data), np.uint8)
    memory[lead:] = np.frombuffer(data, np.uint8)
    return memory[lead:]


def _array(memory: Any, offset: int, dtype: Any, shape: Any, strides: Any, writeable: bool) -> Any:
    made = np.ndarray(shape, dtype, memory, offset, strides)
    made.flags.writeable = writeable
    return made


def _tensor(memory: Any, offset: int, dtype: str, shape: Any, strides: Any, requires_grad: bool) -> Any:
    torch = importlib.import_module("torch")
    storage = torch.from_numpy(memory[offset:]).untyped_storage()
    made = torch.empty(0, dtype=getattr(torch, dtype), device="cpu").set_(storage, 0, shape, strides)
    return made.requires_grad_(requires_grad)


def _tensor_with_gradient(make: Any, args: tuple[Any, ...], grad: Any) -> Any:
    made = make(*args)
    made.grad = grad
    return made
