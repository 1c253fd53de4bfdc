"""Saves and restores what a collector has between two fragments: its rows, and the state of a delivery.

Everything that is saved is a tensor on the host, a number, a string, bytes, or a container of these. Rows are saved for
all environments together, so that it does not matter how the environments are divided among turns.
:meth:`.collector.Collector.state_dict` returns:

================  ======================================================================================================
``n_collected``   the number of fragments
``row``           the last row, for all environments
``groups``        recurrent state and generators of each group
``copies``        what the behaviour copy has changed by itself. Several states, one for each group, if each group has a
                  copy in a process of its own, and these have become different (:mod:`rlplay.engine.remote.saving`)
``watched``       what has been seen of the plain attributes of the learner's actor
``untold``        the names of ``info`` that no environment has told
``environments``  the state of each environment, and of its episode
================  ======================================================================================================
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.copying.copy_state import what_differs
from ..acting.snapshot import Snapshot
from ..acting.torch_context import TorchContext
from ..core import Episode, Final, Fragment, State
from ..envs.rows import StateRow
from ..memory.lane import Lane, Place
from ..memory.slot import Slot
from .messages import Delivery

if TYPE_CHECKING:
    from .collector import Collector

__all__ = [
    "WIDTHS",
    "all_forms",
    "check_same",
    "from_bytes",
    "pack_delivery",
    "pack_episodes",
    "pack_row",
    "resume",
    "to_bytes",
    "unpack_delivery",
    "unpack_episodes",
    "unpack_row",
]

WIDTHS = "environments in each group"
"""What :func:`all_forms` calls the widths of the groups."""

_MOST_SHOWN = 3


def resume(collector: Collector, saved: Mapping[str, Any], torch_context: TorchContext) -> None:
    """Let a new collector go on from a saved stream, and prepare it; in the collector's thread.

    Parameters
    ----------
    saved : mapping
        What ``feed.state_dict()`` has returned.

    Raises
    ------
    ValueError
        Environments or actor are others than those of the saved stream, or the stream is one of several behaviour
        copies that have become different.
    """
    check_same(saved["forms"], collector.forms)
    state = saved["collector"]
    if len(state["copies"]) > 1:
        raise ValueError(
            f"`state` was saved from {len(state['copies'])} collector processes, whose behaviour copies have become "
            f"different, since the actor changes itself as it acts ({', '.join(what_differs(state['copies']))}): go on "
            "with `multi`, as many processes and as many environments in each."
        )
    collector.load_state_dict(state, whole=saved["environments"] == "save")
    collector.prepare(torch_context)
    check_same(saved["forms"], collector.forms)  # the actor's answers are known now


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """Pack a state for another process, by ``torch.save``, since pickling fails for tensors of some dtypes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(data: bytes) -> Any:
    """Return what :func:`to_bytes` has packed."""
    return torch.load(io.BytesIO(data), "cpu", weights_only=True)


def check_same(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that two descriptions are equal, as far as ``here`` goes.

    Raises
    ------
    ValueError
        They differ; the message has the differences.
    """
    differences = []
    for name, now in here.items():
        before = saved.get(name)
        if before == now:
            continue
        if isinstance(before, list) and isinstance(now, list):
            gone = [one for one in before if one not in now] or before
            new = [one for one in now if one not in before] or now
            before, now = (", ".join(map(str, some[:_MOST_SHOWN])) or "nothing" for some in (gone, new))
        differences.append(f"{name}: saved with {before}, now {now}")
    if differences:
        raise ValueError(
            f"`state` does not fit this feed: {'; '.join(differences)}. Pass environments, an actor and options like "
            "those of the feed that it was saved from, or begin anew from the weights."
        )


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
        WIDTHS: [str(part.stop - part.start) for part in groups],
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
        t, b, *others = lane.clone(lane.steady(list(saved["final"])), Place.CONSUMER)
        final = Final(t, b, *nested.structure((blank.state.obs, blank.actor)).unflatten(others))
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
    return torch.tensor([list(episode) for episode in episodes], dtype=torch.float64, device="cpu")


def unpack_episodes(saved: Tensor) -> list[Episode]:
    """Return the episodes that :func:`pack_episodes` has packed."""
    return [Episode(int(env), ret, int(length)) for env, ret, length in saved.tolist()]
