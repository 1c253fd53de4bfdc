"""Step checks: trial runs of a step before it is compiled or captured, and the reasons why some steps cannot be.

A graph has no memory but buffers. A step that remembers something elsewhere, or draws from a generator that is not the
actor's own, would repeat in the graph what it did when the graph was made. Imports neither compilers nor lanes.
"""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .... import nested
from ....contexts import contextmanager
from ....nested import Nested
from ....process_state import generators_held
from ...core import BaseActorModule
from ..copying.shared_memory import address_of_storage
from ..recurrent.reset import numbered_like
from .fingerprint import fingerprints

__all__ = [
    "ArraysUnread",
    "FILLS_OR_EMPTIES",
    "Modes",
    "NoGraph",
    "OperationCheck",
    "Remembers",
    "ValuesUnread",
    "check_changes_only_buffers",
    "check_reset",
    "describe_error",
    "draws_numbers",
    "eager_warning",
    "no_foreign_draws",
    "reads_values",
    "same_generator",
    "set_modes",
]

Modes = tuple[bool, ...]
"""The train (True) or eval (False) mode of each module, in the order of ``actor.modules()``."""

FILLS_OR_EMPTIES = "it adds or fills a buffer, or empties one"
"""The reason for refusing a step that registers a buffer, fills one that is None, or sets one to None."""


class NoGraph(Exception):
    """The step cannot be made into a graph. The message says why, in a clause such as "it draws from `random`"."""


class Remembers(NoGraph):
    """The step changes an attribute that is no buffer. Steps in other modes may read it: the step is eager in all."""


def set_modes(module: nn.Module, modes: Modes) -> None:
    """Set the train/eval mode of each submodule."""
    for part, mode in zip(module.modules(), modes, strict=True):
        part.training = mode


def check_changes_only_buffers(module: nn.Module, step: Callable[[], None]) -> None:
    """Run a step once; raise :class:`Remembers` if it changes an attribute of the module that is no buffer."""
    before = fingerprints(module)
    step()
    changed = [name for name, fingerprint in fingerprints(module).items() if before.get(name) != fingerprint]
    if changed:
        raise Remembers(f"it changes `{changed[0]}`, which is not a buffer")


def check_reset(actor: BaseActorModule, hx: Nested, generator: torch.Generator) -> None:
    """Check that a captured step may call ``reset`` at every row, with a mask that is often empty.

    Parameters
    ----------
    actor : BaseActorModule
        Its ``reset`` is called with masks.
    hx : nested tensors, ``(L, b, ...)``
        A recurrent state, for its form.
    generator : torch.Generator
        The actor's own generator.

    Raises
    ------
    NoGraph
        If ``reset`` draws, changes environments that the mask leaves out, or has another effect when repeated.
    """
    first = nested.leaves(hx)[0]
    numbers = torch.arange(first.shape[1], device=first.device)
    masks = numbers < 0, 2 * numbers < first.shape[1], numbers >= 0
    # each leaf has two values at each place, so that one of them is not what it is reset to
    for mask, shift in itertools.product(masks, (0, 1)):
        before = nested.map(partial(numbered_like, shift=shift), hx)
        with OperationCheck(generator) as operations:
            once = actor.reset(nested.map(torch.clone, before), mask)
            twice = actor.reset(nested.map(torch.clone, once), mask)
        if operations.drawn:
            raise NoGraph(f"its `reset` draws random numbers (`{operations.drawn}`)")
        if not mask.any() and not _identical(before, once):
            raise NoGraph("its `reset` changes the recurrent state where nothing is to be reset")
        if not _identical(once, twice):
            raise NoGraph("its `reset` does something else where it has been done already")


def _identical(some: Nested, others: Nested) -> bool:
    """Return whether nested tensors are equal in structure, dtype and value, the sign of zeros included."""
    return nested.structure(some) == nested.structure(others) and all(
        x.dtype == y.dtype
        and torch.equal(x, y)
        and (not x.is_floating_point() or torch.equal(x.signbit(), y.signbit()))
        for x, y in zip(nested.leaves(some), nested.leaves(others), strict=True)
    )


@contextmanager
def no_foreign_draws() -> Iterator[None]:
    """Check that the ``with`` block draws nothing from ``random`` and ``numpy.random``; restore the state of both.

    Raises
    ------
    NoGraph
        If the block draws from either. It replaces a NoGraph that the block has raised, which the draws may explain.
    """
    with generators_held():
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        reason: NoGraph | None = None
        try:
            yield
        except NoGraph as error:
            reason = error
        finally:
            python_now, numpy_now = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
        if python_now != python:
            raise NoGraph("it draws from `random`") from reason
        if pickle.dumps(numpy_now) != pickle.dumps(numpy):
            raise NoGraph("it draws from `numpy.random`") from reason
        if reason is not None:
            raise reason


class OperationCheck(TorchDispatchMode):
    """Checks every PyTorch operation of this thread inside the ``with`` block, before a graph is made of them.

    Parameters
    ----------
    generator : torch.Generator
        The only generator that operations may draw from.

    Attributes
    ----------
    drawn : str
        The latest operation that drew random numbers; empty if none did.

    Raises
    ------
    NoGraph
        By an operation whose result the host has to wait for, that draws from another generator, or that copies
        between the host and the device.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.drawn = ""
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check one operation and run it."""
        kwargs = kwargs or {}
        if reads_values(func, args, kwargs):
            raise NoGraph(f"the host has to wait for what is in a tensor (`{func}`)")
        if func.overloadpacket is torch.ops.aten.normal and any(isinstance(x, Tensor) for x in args):
            raise NoGraph(
                "`torch.normal` makes the host wait for a look at the standard deviation: write "
                "`mean + std * torch.randn(mean.shape, device=mean.device, generator=self.generator)`"
            )
        if draws_numbers(func, args, kwargs):
            self.drawn = str(func)
            own = [
                same_generator(x, self._generator) for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)
            ]
            if own != [True]:
                whose = "a generator that is not its own" if own else "torch's global generator"
                raise NoGraph(f"it draws random numbers from {whose} (`{func}`)")
        result = func(*args, **kwargs)
        if _crosses_devices(func, tree_leaves((args, kwargs)), tree_leaves(result)):
            raise NoGraph(f"it copies between the host and the device (`{func}`)")
        return result


_READS_ALL = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""Methods that read values without an operation of PyTorch."""


class _OfWeights:
    """Recognises parameters and buffers, and views of these, whose values a step must not read.

    A tracer runs a call that reads a value on the weight itself, so that the graph would keep the value of that moment.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._memory = {address_of_storage(x) for x in weights} - {0}

    def _are_read(self, values: Iterable[Any]) -> bool:
        return any(isinstance(x, Tensor) and address_of_storage(x) in self._memory for x in values)


class ArraysUnread(_OfWeights, TorchFunctionMode):
    """Refuses a step that reads a parameter or buffer as a list or an array. Raises :class:`NoGraph` at such a call."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check one call and make it."""
        if func in _READS_ALL and self._are_read(args[:1]):
            raise NoGraph(f"it reads a parameter or buffer by `{func.__name__}`")
        return func(*args, **(kwargs or {}))


class ValuesUnread(_OfWeights, TorchDispatchMode):
    """Refuses a step that makes a Python number of a parameter or buffer, as ``self.epsilon.item()`` does.

    Raises :class:`NoGraph` at such a call.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check one operation and run it."""
        kwargs = kwargs or {}
        if reads_values(func, args, kwargs) and self._are_read(tree_leaves((args, kwargs))):
            raise NoGraph(f"it needs the value of a parameter or buffer as a Python number or a shape (`{func}`)")
        return func(*args, **kwargs)


def same_generator(one: Any, other: Any) -> bool:
    """Return whether two Python objects are the same generator; operations receive a generator in a new object."""
    return bool(one._cdata == other._cdata)


def reads_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the host needs the values of a tensor to go on: as a Python number, or for a shape."""
    if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        by_number = func is torch.ops.aten.index.Tensor and not _indexes_by_mask(args)
        return not by_number and kwargs.get("output_size") is None
    if func.overloadpacket in (torch.ops.aten.index_put_, torch.ops.aten.index_put, torch.ops.aten._index_put_impl_):
        return _indexes_by_mask(args) and args[2].numel() != 1  # a single number is filled in without indices
    return False


def _indexes_by_mask(args: tuple[Any, ...]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def draws_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation draws random numbers. One with dropout does not if the rate is 0 or in eval mode."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    names = {argument.name for argument in func._schema.arguments}
    rates = [given.get(name, 0.0) for name in ("dropout", "dropout_p") if name in names]
    off = False in (given.get("train"), given.get("training"))
    return not off and (any(rates) or not rates)


def _crosses_devices(func: Any, inputs: list[Any], outputs: list[Any]) -> bool:
    """Return whether tensors of an operation lie on several kinds of device.

    Host tensors without dimensions are ignored except in copies, since kernels receive them as numbers.
    """
    copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
    kinds = {x.device.type for x in outputs if isinstance(x, Tensor)}
    return len(kinds | {x.device.type for x in inputs if isinstance(x, Tensor) and (x.ndim or copies)}) > 1


def eager_warning(modes: Modes, why: str, *, always: bool) -> str:
    """Return the warning that the step runs eagerly: in all modes if ``always``, else in modes such as these."""
    where = "" if always else " in train mode" if all(modes) else " in some modes" if any(modes) else " in eval mode"
    return f"`compile=True`: the actor's step runs eagerly{where}, since {why}."


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the first line of its message, without final punctuation."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}".rstrip(" .:")
