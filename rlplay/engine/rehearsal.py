"""Trying a step out before it is made into a graph: whether it would do the same again, and what it draws.

A graph has no memory but buffers, so whatever else a step leaves behind would be frozen in it. Not: compilers.
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

from ..sampling import Source

__all__ = ["Noise", "Refused", "check_repeats", "nothing_drawn"]


class Refused(Exception):
    """There is no graph that does what the step does. Says why, of the step."""


class Noise(Source):
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
            raise Refused("it does not draw alike each time")
        return self._left.pop(0)


def check_repeats(module: nn.Module, noise: Noise, step: Callable[[], None]) -> None:
    """See that a step of a module leaves nothing behind but in buffers, and draws nothing but what is in stock.

    Raises
    ------
    Refused
        If not.
    """
    step()  # what it makes at first, and keeps, is of no concern
    noise.given.clear()
    before, state = _prints(module), noise.get_state()
    step()
    changed = [name for name, print_ in _prints(module).items() if before.get(name) != print_]
    if changed:
        raise Refused(f"it changes `{changed[0]}`, which is not a buffer")
    if not torch.equal(state, noise.get_state()):
        raise Refused("it draws from `self.generator` otherwise than through `rlplay.sampling`")


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """See that nothing is drawn meanwhile from generators that torch knows nothing of; put them back.

    Raises
    ------
    Refused
        If there is.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
        if random.getstate() != python:
            raise Refused("it draws from `random`")
        if pickle.dumps(np.random.get_state()) != pickle.dumps(numpy):  # noqa: NPY002
            raise Refused("it draws from `numpy.random`")
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


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
