"""The random numbers of a compiled step: drawn outside of the compiled program, in the order of the step.

A draw depends on shapes and numbers alone, not on tensors; so it can be made before the step, whose graph takes the
result as an operand. Operations that draw by a distribution that tensors describe are split into a draw and operations
that do the rest, as torch itself does it. Imports neither actors nor compilers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ....sampling import Source
from .attribute_reads import Operations, check_same_operations
from .step_checks import NoGraph, check_changes_only_buffers, draws_numbers, same_generator

__all__ = ["Draw", "DrawsOutside", "RecordedNoise", "check_repeats"]

_aten = torch.ops.aten

_NOT_TO_DRAW = "it uses `self.generator` otherwise than to draw"


class Draw(NamedTuple):
    """One draw of a step."""

    method: str
    """The method of a tensor that fills it with random numbers; ``log_exponential`` is that of ``Source``."""
    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...] = ()
    """The strides of the tensor that is filled. Torch fills it in the order of its memory."""
    args: tuple[Any, ...] = ()
    """The arguments of the method."""
    from_global: bool = False
    """Whether it draws from torch's global generator, instead of from the actor's own."""

    def take(self, source: Source) -> Tensor:
        """Draw the numbers; ``source`` is the actor's own generator."""
        if self.method == "log_exponential":
            return source.take(self.shape, self.dtype)[0]
        blank = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="cpu")
        drawn: Tensor = getattr(blank, self.method)(*self.args, generator=None if self.from_global else source)
        return drawn


class RecordedNoise(Source):
    """A source of noise for trial runs: it records what a step draws, and can return the same tensors again.

    Recording and replaying do not change the state of the generator itself: the noise comes from another generator.

    Attributes
    ----------
    draws : list of Draw
        The draws so far, in order.
    tensors : list of Tensor
        What they have returned.
    drawing : bool
        Whether the operations of this moment are those of the source itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._source = Source().manual_seed(0)
        self.draws: list[Draw] = []
        self.tensors: list[Tensor] = []
        self.drawing = False
        self._global_state = torch.get_rng_state()
        self._next: int | None = None

    def clear(self) -> None:
        """Delete all recorded draws and tensors."""
        self.draws.clear()
        self.tensors.clear()

    def check_global_state(self) -> None:
        """Check that nothing but draws has changed the state of torch's global generator.

        Raises
        ------
        NoGraph
            If it was seeded, or set back.
        """
        if not torch.equal(torch.get_rng_state(), self._global_state):
            raise NoGraph("it seeds torch's global generator, or sets its state")

    def manual_seed(self, seed: int) -> Source:
        """Raise NoGraph: a step that seeds its generator cannot draw outside of the compiled program."""
        raise NoGraph(_NOT_TO_DRAW)

    def set_state(self, state: Tensor) -> Any:
        """Raise NoGraph, as :meth:`manual_seed` does."""
        raise NoGraph(_NOT_TO_DRAW)

    def seed(self) -> int:
        """Raise NoGraph, as :meth:`manual_seed` does."""
        raise NoGraph(_NOT_TO_DRAW)

    def rewind(self) -> None:
        """Return the recorded tensors from now on, starting with the first."""
        self._next = 0

    def log_exponential(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return logarithms of standard exponential variates, new ones or recorded ones."""
        return self.draw(Draw("log_exponential", torch.Size(shape), dtype))

    def draw(self, draw: Draw) -> Tensor:
        """Return random numbers, new ones or recorded ones.

        Raises
        ------
        NoGraph
            If the draw differs from the recorded one, or if none is left.
        """
        if self._next is None:
            self.draws.append(draw)
            self.drawing = True
            if draw.from_global:
                self.check_global_state()
                torch.rand((), device="cpu")  # or it would not be noticed that the state is set back
                self._global_state = torch.get_rng_state()
            self.tensors.append(draw._replace(from_global=False).take(self._source))
            self.drawing = False
            return self.tensors[-1]
        if self._next == len(self.draws) or self.draws[self._next] != draw:
            raise NoGraph("it does not draw alike each time")
        self._next += 1
        return self.tensors[self._next - 1]


class DrawsOutside(TorchDispatchMode):
    """Inside the ``with`` block, operations that draw random numbers get them from recorded noise.

    Raises
    ------
    NoGraph
        By an operation that draws from a generator that is neither torch's global one nor the actor's own, or from a
        distribution that cannot be split into a draw and the rest.
    """

    def __init__(self, noise: RecordedNoise) -> None:
        super().__init__()
        self._noise = noise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, with recorded noise if it draws."""
        kwargs = kwargs or {}
        if self._noise.drawing or not draws_numbers(func, args, kwargs):
            return func(*args, **kwargs)
        given = {argument.name: argument.default_value for argument in func._schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        generator = given.pop("generator", None)
        if generator is not None and not same_generator(generator, self._noise):
            raise NoGraph(f"it draws from a generator that is not its own, by `{func}`")
        replacement = _REPLACEMENTS.get(func.overloadpacket)
        if replacement is None or given.get("out") is not None:
            raise NoGraph(f"it draws random numbers by `{func}`")

        def draw(method: str, like: Tensor, *numbers: Any) -> Tensor:
            if any(isinstance(number, Tensor) for number in numbers):
                raise NoGraph(f"it draws random numbers by `{func}`")
            stride = _strides(torch.empty_like(like))
            return self._noise.draw(Draw(method, like.shape, like.dtype, stride, numbers, generator is None))

        return replacement(draw, given)


def check_repeats(module: nn.Module, noise: RecordedNoise, step: Callable[[], None]) -> None:
    """Check that a step changes only buffers of the module, and otherwise repeats itself; record what it draws.

    The step runs four times. What the first run creates and keeps is allowed.

    Raises
    ------
    NoGraph
        If the second run changes anything else, or draws otherwise; if the third and the fourth, which get the same
        random numbers, differ in their operations; or if the step seeds a generator.
    """
    step()
    first = list(noise.draws)
    noise.clear()
    check_changes_only_buffers(module, step)
    if noise.draws != first:
        raise NoGraph("it does not draw alike each time")
    noise.check_global_state()

    def run(operations: Operations) -> None:
        noise.rewind()
        with operations:
            step()

    check_same_operations(run)


_Draw = Callable[..., Tensor]
_Given = dict[str, Any]


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor, with 1 for each dimension of length 1, whose stride has no effect."""
    return tuple(stride if n > 1 else 1 for n, stride in zip(x.shape, x.stride(), strict=True))


def _blank(given: _Given) -> Tensor:
    """Return a tensor of the form that a factory would return."""
    options = {name: given.get(name) for name in ("dtype", "layout", "device", "pin_memory")}
    if isinstance(options["dtype"], int):  # the default value in the schema of `randint`
        options["dtype"] = torch.int64
    if "self" in given:  # `rand_like` and the like
        return torch.empty_like(given["self"], **options, memory_format=given.get("memory_format"))
    return torch.empty(given["size"], **options)


def _fills(method: str, *names: str) -> Callable[[_Draw, _Given], Tensor]:
    """Return the replacement of a method that fills a tensor; ``names`` are those of its arguments."""

    def replaced(draw: _Draw, given: _Given) -> Tensor:
        target: Tensor = given["self"]
        if _strides(target) != _strides(torch.empty_like(target)):
            raise NoGraph(f"it draws random numbers into a part of a tensor, by `{method}`")  # in another order
        return target.copy_(draw(method, target, *(given[name] for name in names if name in given)))

    return replaced


def _makes(method: str, *numbers: Any) -> Callable[[_Draw, _Given], Tensor]:
    """Return the replacement of a function that makes a tensor; strings among ``numbers`` name its arguments."""

    def replaced(draw: _Draw, given: _Given) -> Tensor:
        values = [given.get(x, 0) if isinstance(x, str) else x for x in numbers]
        return draw(method, _blank(given), *values).clone()

    return replaced


def _normal(draw: _Draw, given: _Given) -> Tensor:
    """Compute ``torch.normal`` from a draw, in the order of operations of ATen's ``normal_out_impl``."""
    mean, std = given["mean"], given["std"]
    if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
        return draw("normal_", _blank(given), mean, std).clone()
    like = torch.broadcast_tensors(*(x for x in (mean, std) if isinstance(x, Tensor)))[0].contiguous()
    drawn = draw("normal_", like, 0.0, 1.0) * std if isinstance(std, Tensor) else draw("normal_", like, 0.0, std)
    return torch.add(drawn, mean)


def _multinomial(draw: _Draw, given: _Given) -> Tensor:
    """Replace ``torch.multinomial`` of one sample: ATen, ``multinomial_out``. -1 where torch would raise an error."""
    probs = given["self"]
    if given["num_samples"] != 1:
        raise NoGraph("it draws random numbers by `torch.multinomial` of more than one sample")
    index = (probs / draw("exponential_", probs, 1.0)).argmax(dim=-1, keepdim=True)
    right = ((probs >= 0) & (probs < float("inf"))).all(dim=-1, keepdim=True) & (probs > 0).any(dim=-1, keepdim=True)
    return torch.where(right, index, -1)


_REPLACEMENTS: dict[Any, Callable[[_Draw, _Given], Tensor]] = {
    _aten.normal_: _fills("normal_", "mean", "std"),
    _aten.uniform_: _fills("uniform_", "from", "to"),
    _aten.exponential_: _fills("exponential_", "lambd"),
    _aten.log_normal_: _fills("log_normal_", "mean", "std"),
    _aten.cauchy_: _fills("cauchy_", "median", "sigma"),
    _aten.geometric_: _fills("geometric_", "p"),
    _aten.bernoulli_: _fills("bernoulli_", "p"),
    _aten.random_: _fills("random_", "from", "to"),
    _aten.rand: _makes("uniform_", 0.0, 1.0),
    _aten.rand_like: _makes("uniform_", 0.0, 1.0),
    _aten.randn: _makes("normal_", 0.0, 1.0),
    _aten.randn_like: _makes("normal_", 0.0, 1.0),
    _aten.randint: _makes("random_", "low", "high"),
    _aten.randint_like: _makes("random_", "low", "high"),
    _aten.normal: _normal,
    _aten.multinomial: _multinomial,
}
