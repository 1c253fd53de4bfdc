"""The layouts of what environments and actor give, and the host memory for what the environments give."""

from __future__ import annotations

from typing import NamedTuple

from ..acting.torch_context import TorchContext
from ..core import Fragment, Outcome, State
from ..memory.lane import Lane
from ..memory.layout import info_layout, outcome_layout, state_layout
from ..memory.slot import RowLayout, Slot
from ..stepping.stepper import Stepper
from .messages import Plan
from .staging import make_slots

__all__ = ["LaidOut", "Probed", "lay_out"]


class LaidOut(NamedTuple):
    """What the environments give: the layouts of their leaves, and host memory for them."""

    state: State
    """The layout of a state: ``Leaf`` instead of tensors."""
    outcome: Outcome
    """The layout of an outcome, without ``final``."""
    slots: list[Slot]
    """Empty if environments do not write into host memory."""


class Probed(NamedTuple):
    """What the virtual step of :meth:`Collector.prepare <.collector.Collector.prepare>` shows."""

    torch_context: TorchContext
    layout: Fragment
    """The layout of a fragment: ``Leaf`` instead of tensors."""
    whole: Fragment
    """The layout of a fragment with the shapes of its whole tensors, which have the dimensions of time and batch."""


def lay_out(stepper: Stepper, plan: Plan, lane: Lane) -> LaidOut:
    """Allocate the slots, and let the stepper write the very first row."""
    state, info = state_layout(stepper.obs, stepper.act), info_layout(plan.entries)
    absent = [entry.absent for entry in plan.entries.entries]
    widths = [stepper.groups[turn[-1]].stop - stepper.groups[turn[0]].start for turn in stepper.turns]
    layouts = [RowLayout.of(state, info, width) for width in widths]
    slots = make_slots(layouts, absent, plan.n_steps, lane, stepper.memory)
    stepper.attach(slots)
    return LaidOut(state, outcome_layout(info), slots)
