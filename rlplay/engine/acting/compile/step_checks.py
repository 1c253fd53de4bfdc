"""Trying a step out before it is made into a graph: whether it would do the same again, and what it draws.

A graph has no memory but buffers, so whatever else a step leaves behind would be frozen in it. Not: compilers, streams.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ....sampling import Source

__all__ = [
    "Modes",
    "ReplayedNoise",
    "NoGraph",
    "OperationCheck",
    "check_changes_only_buffers",
    "check_repeats",
    "eager_warning",
    "one_line",
    "no_foreign_draws",
    "same_generator",
    "reads_values",
]

Modes = tuple[bool, ...]
"""The train/eval modes of all modules."""


class NoGraph(Exception):
    """There is no graph that does what the step does. Says why, of the step."""


class ReplayedNoise(Source):
    """Remembers what noise it has given, so as to give the very same tensors again while the step is traced."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Begin with nothing. What is given does not change the state of this generator itself."""
        super().__init__(device)
        self._own = Source(device).manual_seed(0)
        self.given: list[Tensor] = []
        self._left: list[Tensor] | None = None

    def rewind(self) -> None:
        """Give the same again from now on."""
        self._left = list(self.given)

    def log_exponential(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Take the logarithms of standard exponential variates."""
        if self._left is None:
            self.given.append(self._own.log_exponential(torch.Size(shape), dtype))
            return self.given[-1]
        if not self._left or (self._left[0].shape, self._left[0].dtype) != (shape, dtype):
            raise NoGraph("it does not draw alike each time")
        return self._left.pop(0)


def check_repeats(module: nn.Module, noise: ReplayedNoise, step: Callable[[], None]) -> None:
    """See that a step of a module leaves nothing behind but in buffers, and draws nothing but what is in stock.

    Raises
    ------
    NoGraph
        If not.
    """
    step()  # what it makes at first, and keeps, is of no concern
    noise.given.clear()
    state = noise.get_state()
    check_changes_only_buffers(module, step)
    if not torch.equal(state, noise.get_state()):
        raise NoGraph("it draws from `self.generator` otherwise than through `rlplay.sampling`")


def check_changes_only_buffers(module: nn.Module, step: Callable[[], None]) -> None:
    """See that a step of a module leaves nothing behind but in buffers.

    Raises
    ------
    NoGraph
        If not.
    """
    before = _prints(module)
    step()
    changed = [name for name, print_ in _prints(module).items() if before.get(name) != print_]
    if changed:
        raise NoGraph(f"it changes `{changed[0]}`, which is not a buffer")


@contextmanager
def no_foreign_draws() -> Iterator[None]:
    """See that nothing is drawn meanwhile from generators that torch knows nothing of; put them back.

    Raises
    ------
    NoGraph
        If there is.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
        if random.getstate() != python:
            raise NoGraph("it draws from `random`")
        if pickle.dumps(np.random.get_state()) != pickle.dumps(numpy):  # noqa: NPY002
            raise NoGraph("it draws from `numpy.random`")
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class OperationCheck(TorchDispatchMode):
    """Looks, in this thread, at all that a step asks of the device, and refuses what a graph of it would not do.

    Parameters
    ----------
    generator : torch.Generator
        The one generator that it may draw from.

    Attributes
    ----------
    drawn : str
        What it has drawn with last; empty if with nothing.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.drawn = ""
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, if it may be."""
        kwargs = kwargs or {}
        if reads_values(func, args, kwargs):
            raise NoGraph(f"the host has to wait for what is in a tensor (`{func}`)")
        if _draws(func, args, kwargs):
            self.drawn = str(func)
            own = [
                same_generator(x, self._generator) for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)
            ]
            if own != [True]:
                whose = "a generator that is not its own" if own else "torch's global generator"
                raise NoGraph(f"it draws random numbers from {whose} (`{func}`)")
        answer = func(*args, **kwargs)
        if _crosses(func, tree_leaves((args, kwargs)), tree_leaves(answer)):
            raise NoGraph(f"it copies between the host and the device (`{func}`)")
        return answer


def same_generator(one: Any, other: Any) -> bool:
    """Whether generators are one and the same, which comes out of an operation under another Python object."""
    return bool(one._cdata == other._cdata)


def reads_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation has to know what is in a tensor before the host can go on: a number, or a shape."""
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        by_number = func is torch.ops.aten.index.Tensor and not _by_mask(args)
        return not by_number and kwargs.get("output_size") is None
    if func.overloadpacket in (torch.ops.aten.index_put_, torch.ops.aten.index_put, torch.ops.aten._index_put_impl_):
        return _by_mask(args) and args[2].numel() != 1  # one number is filled in through the mask itself
    return False


def _by_mask(args: tuple[Any, ...]) -> bool:
    return any(at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1])


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers; those that could drop out, but do not, draw none."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    names = {argument.name for argument in func._schema.arguments}
    rates = [given.get(name, 0.0) for name in ("dropout", "dropout_p") if name in names]
    off = False in (given.get("train"), given.get("training"))
    return not off and (any(rates) or not rates)


def _crosses(func: Any, taken: list[Any], made: list[Any]) -> bool:
    """Whether tensors lie on different kinds of device; but for copies, numbers are handed over with the launch."""
    copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
    kinds = {x.device.type for x in made if isinstance(x, Tensor)}
    return len(kinds | {x.device.type for x in taken if isinstance(x, Tensor) and (x.ndim or copies)}) > 1


def eager_warning(modes: Modes, why: str, *, always: bool) -> str:
    """Say why the step runs eagerly: always, or in these modes only."""
    where = "" if always else " in train mode" if all(modes) else " in some modes" if any(modes) else " in eval mode"
    return f"`compile=True`: the actor's step runs eagerly{where}, since {why}."


def one_line(error: BaseException) -> str:
    """Name an error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}".rstrip(" .:")


def _prints(module: nn.Module) -> dict[str, Any]:
    """Take the fingerprints of what modules keep beside parameters and buffers."""
    weights = {id(x) for x in (*module.parameters(), *module.buffers())}
    return {
        f"{name}.{key}".lstrip("."): _Printer.print(value, weights)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in ("_parameters", "_buffers", "_modules", "generator")
    }


class _Printer(pickle.Pickler):
    """Writes down what something is. A tensor, which may be large, is the same until somebody writes to it."""

    def __init__(self, file: BytesIO, weights: set[int]) -> None:
        super().__init__(file)
        self.weights, self.met = weights, list[Any]()

    def persistent_id(self, thing: Any) -> Any:
        """Name what is not to be written down."""
        if not isinstance(thing, Tensor | nn.Module | torch.Generator):
            return None
        self.met.append(thing)
        return id(thing), thing._version if isinstance(thing, Tensor) and id(thing) not in self.weights else 0

    @classmethod
    def print(cls, value: Any, weights: set[int]) -> Any:
        """Return something that is equal for as long as the value is; it keeps alive what it knows by its ``id``."""
        printer = cls(file := BytesIO(), weights)
        try:
            printer.dump(value)
        except Exception:  # nor can it be copied, so nobody changes it: a lambda, a lock
            return id(value)
        return file.getvalue(), _Kept(printer.met)


class _Kept(list[Any]):
    """Things that are kept alive, all alike."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept)
