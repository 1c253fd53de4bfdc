"""The form of an actor's answers: found once by a trial step, and compared with every later answer.

For errors it also puts into words the form of what the actor is given. It has no copy of the actor and runs no step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested, Structure
from ..concurrency.exceptions import add_note

__all__ = [
    "NOT_PROBED",
    "ActorSpec",
    "Form",
    "check_forms",
    "check_unchanged",
    "first_of",
    "form_in_words",
    "form_of",
    "note_obs",
    "same_kind",
    "versions_of",
]

_MOST_TOLD = 8
"""A message tells at most this number of entries; of the others it tells how many there are."""

Form: TypeAlias = tuple[torch.Size, torch.dtype]
"""The shape and the dtype of a tensor."""

form_of: Callable[[Any], Form] = attrgetter("shape", "dtype")
"""Returns the form of a tensor."""


@dataclass(frozen=True)
class ActorSpec:
    """What a trial step has shown about an actor. It holds for all groups."""

    answer: Structure
    """The structure of a pair of action and info."""
    n_acts: int
    """The number of leaves of an action. They come first among the leaves of an answer."""
    dtypes: list[torch.dtype]
    """The dtypes of the leaves of an answer."""
    clamped: list[tuple[int, int, int]]
    """For each leaf of the action whose integers are wider than the dtype of its space: the index of the leaf, and the
    least and the largest number of that dtype, to which it is clamped. Cast to bytes as it is, 256 would become 0,
    which is an action."""
    recurrent: bool
    """Whether the actor has a recurrent state."""
    resets_by_mask: bool
    """Whether the actor's ``reset`` takes a mask (see :func:`rlplay.engine.acting.recurrent.reset.honours_mask`)."""

    def leaves(self, act: Nested, info: Nested) -> list[Tensor]:
        """Return the leaves of an answer: those of the action, clamped where that is needed, then those of the info.

        Raises
        ------
        ValueError
            If the structure of either has changed.
        """
        leaves: list[Tensor] = self.answer.flatten_up_to((act, info))  # type: ignore[assignment, arg-type]
        for k, least, largest in self.clamped:
            leaves[k] = leaves[k].clamp(least, largest)
        return leaves


NOT_PROBED = ActorSpec(nested.structure(((), ())), 0, [], [], recurrent=False, resets_by_mask=True)
"""The spec before the trial step: an actor that answers with nothing."""


def check_forms(expected: list[Form], got: list[Form]) -> None:
    """Check that the leaves of an answer are what they were in the trial step.

    Dtypes may differ in floating-point precision, as after a change of the default dtype. Writing any other dtype into
    a row would round it silently, and writing another shape could broadcast it.

    Raises
    ------
    ValueError
        If a shape has changed, or the kind of a dtype.
    """
    if got == expected:
        return
    shapes, dtypes = zip(*expected, strict=True)
    shapes_now, dtypes_now = zip(*got, strict=True)
    if shapes_now != shapes:
        before, now = next(pair for pair in zip(shapes, shapes_now, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"the actor's answer (act or info) has changed its shape: expected {tuple(before)}, got {tuple(now)}."
        )
    if not all(map(same_kind, dtypes_now, dtypes)):
        raise ValueError(
            f"the dtypes of the actor's act or info have changed: expected {list(dtypes)}, got {list(dtypes_now)}."
        )


def versions_of(tree: Nested) -> list[int]:
    """Return how often each tensor has been written to in place; 0 for inference tensors, which do not count."""
    return [0 if x.is_inference() else x._version for x in nested.leaves(tree)]


def check_unchanged(state: Nested, versions: list[int]) -> None:
    """Check that the actor has not changed its inputs, whose :func:`versions_of` were these before the step.

    Raises
    ------
    ValueError
        If it has.
    """
    for name, version, now in zip(nested.names(state, ""), versions, versions_of(state), strict=True):
        if now != version:
            name = name.lstrip(".")
            raise ValueError(
                f"the actor changes its input `{name}` in place: its numbers, as `x = {name}.float(); x /= 255` does "
                "with floats, or the shape of a view of it, as `x.squeeze_()`. Fragments are made of this memory, and "
                "would have the changed numbers: make a new tensor, as by `x = x / 255` or `x.squeeze()`."
            )


def same_kind(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether dtypes are equal, or differ in floating-point precision alone."""
    return one == other or (one.is_floating_point and other.is_floating_point)


def note_obs(error: BaseException, obs: Nested) -> None:
    """Add a note to an exception of the actor that tells the form of the observation it was given.

    If that fails there is no note: the user's exception is the one to report.
    """
    with suppress(Exception):
        add_note(error, form_in_words(obs, "obs"))


def form_in_words(tree: Nested, name: str) -> str:
    """Describe the tensors of a nest with this name: ``obs['goal'] was 1 x 4 int64, values 0 to 7; obs['at'] was ...``.

    Values are told of integers on the host alone: nothing waits for a device.
    """
    leaves = nested.leaves(tree)
    if not leaves:
        return f"{name} had no tensors"
    told = [f"{part} was {_in_words(x)}" for part, x in zip(nested.names(tree, name), leaves, strict=True)]
    return first_of(told, "; ")


def first_of(told: Sequence[str], separator: str = ", ") -> str:
    """Return the first entries as a list in words, and the number of those that are left out."""
    n_more = len(told) - _MOST_TOLD
    return separator.join([*told[:_MOST_TOLD], f"and {n_more} more"] if n_more > 0 else told)


def _in_words(x: Tensor) -> str:
    size = " x ".join(map(str, x.shape)) or "one"
    words = f"{size} {str(x.dtype).removeprefix('torch.')}"
    if x.is_cpu and x.numel() and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
        numbers = x.numpy()  # torch has no extremes of some integers
        words += f", values {numbers.min()} to {numbers.max()}"
    return words
