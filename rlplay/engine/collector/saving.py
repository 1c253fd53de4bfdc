"""Saves and restores what a collector has between two fragments: its rows, and the state of a delivery.

Everything that is saved is a tensor on the host, a number, a string, bytes, or a container of these. Rows are saved for
all environments together, so that it does not matter how the environments are divided among turns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.snapshot import Snapshot
from ..core import Episode, Final, Fragment, State
from ..envs.rows import StateRow
from ..memory.lane import Lane, Place
from ..memory.slot import Slot
from .messages import Delivery

__all__ = [
    "all_forms",
    "pack_delivery",
    "pack_episodes",
    "pack_row",
    "unpack_delivery",
    "unpack_episodes",
    "unpack_row",
]


def all_forms(
    state: State, groups: Sequence[slice], of_actor: list[str], layout: Fragment | None
) -> dict[str, list[str]]:
    """Return names, shapes and dtypes of what environments and actor have, in words.

    Parameters
    ----------
    state, layout : nested Leaf
        The layout of a state; that of a fragment, or None while the actor's answers are not known.
    of_actor : list of str
        The parameters and buffers of the actor.
    """
    forms = {
        "observations": _forms_of(state.obs, "obs"),
        "actions": _forms_of(state.act, "act"),
        "environments in each group": [str(part.stop - part.start) for part in groups],
        "parameters and buffers of the actor": of_actor,
    }
    if layout is not None:
        forms["infos of the actor"] = _forms_of(layout.actor, "info")
        forms["recurrent state of the actor"] = _forms_of(layout.hx, "hx")
    return forms


def _forms_of(layout: Nested, root: str) -> list[str]:
    """Return the name, dtype and shape of each leaf of a layout; ``root`` is the name of the whole."""
    named = zip(nested.names(layout, root), nested.leaves(layout), strict=True)
    return [f"{name}: {str(leaf.dtype).removeprefix('torch.')} {leaf.shape}" for name, leaf in named]


def pack_row(slot: Slot, row: int) -> dict[str, list[Tensor]]:
    """Return the states in one host row, as tensors ``(B, ...)``. It must be complete."""
    rows = [_leaves_of(turn.rows[row]) for turn in slot.turns]
    return {
        name: [torch.from_numpy(np.concatenate(leaves)) for leaves in zip(*(one[name] for one in rows), strict=True)]
        for name in rows[0]
    }


def unpack_row(saved: Mapping[str, Sequence[Tensor]], slot: Slot, *, whole: bool) -> None:
    """Write the states that :func:`pack_row` returned into row 0 of a slot.

    Unless ``whole`` new episodes begin there: then the last actions and rewards are written alone.
    """
    start = 0
    for turn in slot.turns:
        row = turn.rows[0]
        stop = start + len(row.fin)
        for name, leaves in _leaves_of(row).items():
            if whole or name in ("act", "rew"):
                for leaf, values in zip(leaves, saved[name], strict=True):
                    leaf[...] = values.cpu().numpy()[start:stop]
        start = stop


def _leaves_of(row: StateRow) -> dict[str, list[Any]]:
    return {"stepno": [row.stepno], "obs": row.obs, "act": row.act, "rew": [row.rew], "fin": [row.fin]}


def pack_delivery(delivery: Delivery, lane: Lane) -> dict[str, Any]:
    """Return a delivery, with copies of its tensors; in the consumer's thread."""
    lane.host_wait(delivery.copied)
    final = delivery.final
    return {
        "version": delivery.version,
        "fragment": [x.to("cpu", copy=True) for x in nested.leaves(delivery.fragment)],
        "final": [x.to("cpu", copy=True) for x in nested.leaves(final)] if isinstance(final, Final) else None,
        "steps": delivery.steps,
        "episodes": pack_episodes(delivery.episodes),
        "warning": delivery.warning,
    }


def unpack_delivery(saved: Mapping[str, Any], blank: Fragment, lane: Lane) -> Delivery:
    """Return the delivery that :func:`pack_delivery` has packed; in the consumer's thread, on its current stream.

    Parameters
    ----------
    blank : Fragment
        The memory of its fragment.
    """
    found, structure = nested.flatten(blank)
    lane.copy(found, lane.steady(list(saved["fragment"])))
    final: Any = ()
    if saved["final"] is not None:
        leaves = [lane.empty(Place.CONSUMER, x.shape, x.dtype) for x in saved["final"]]
        lane.copy(leaves, lane.steady(list(saved["final"])))
        _, _, *others = leaves
        inside = nested.structure((blank.state.obs, blank.actor)).unflatten(others)
        final = Final(leaves[0], leaves[1], *inside)
    return Delivery(
        version=saved["version"],
        fragment=structure.unflatten(found),  # type: ignore[arg-type]
        final=final,
        copied=lane.record(),
        consumer_stream=lane.current,
        snapshot=Snapshot([], []),
        steps=saved["steps"],
        warning=saved["warning"],
        episodes=unpack_episodes(saved["episodes"]),
    )


def pack_episodes(episodes: Collection[Episode]) -> Tensor:
    """Return episodes as one tensor: a file with many numbers of their own takes long to write."""
    return torch.tensor([list(episode) for episode in episodes], dtype=torch.float64)


def unpack_episodes(saved: Tensor) -> list[Episode]:
    """Return the episodes that :func:`pack_episodes` has packed."""
    return [Episode(int(env), ret, int(length)) for env, ret, length in saved.tolist()]
