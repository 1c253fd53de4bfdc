"""Merges the states of several collectors, of one group each, into that of one; and splits the state of one.

So it does not matter which engine a state comes from. If fragments are made of the parts that finish first, the state
has ``parts`` as well: for each process, the part that is finished but in no fragment yet, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.copying.copy_state import what_differs
from ..acting.group import split
from ..collector.saving import WIDTHS, check_same
from .collector_process import Reply
from .shared_fragment import SharedFragment

__all__ = ["merge_states", "pack_part", "split_state", "unpack_part"]


def merge_states(
    states: Sequence[Mapping[str, Any]], watched: Mapping[str, Any], untold: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a collector that has the environments of several collectors, each of which is a group.

    Parameters
    ----------
    states : sequence of mappings
        What :meth:`.collector.Collector.state_dict` of each has returned.
    watched, untold : mapping
        What the consumer's process has seen of the learner's actor, and of the info entries.
    """
    copies = [copy for state in states for copy in state["copies"]]
    alike = len({copy["adopted"] for copy in copies}) == 1 and not what_differs(copies)
    return {
        "n_collected": max(state["n_collected"] for state in states),
        "row": _side_by_side([state["row"] for state in states]),
        "groups": [group for state in states for group in state["groups"]],
        "copies": copies[:1] if alike else copies,
        "watched": dict(watched),
        "untold": dict(untold),
        "environments": [one for state in states for one in state["environments"]],
    }


def _side_by_side(rows: Sequence[Mapping[str, list[Tensor]]]) -> dict[str, list[Tensor]]:
    """Join rows of different environments, as :func:`.collector.saving.pack_row` returns them."""
    joined = {}
    for name in rows[0]:
        leaves = zip(*(row[name] for row in rows), strict=True)
        joined[name] = [torch.from_numpy(np.concatenate([x.numpy() for x in parts])) for parts in leaves]
    return joined


def split_state(saved: Mapping[str, Any], n_groups: int, width: int) -> list[dict[str, Any]]:
    """Split a saved stream into one for each group: what :func:`.collector.saving.resume` reads of it.

    Parameters
    ----------
    saved : mapping
        What ``feed.state_dict()`` has returned.
    n_groups, width : int
        The number of groups, and the number of environments in each.

    Raises
    ------
    ValueError
        The stream has other groups, or is one of vector environments.
    """
    check_same(saved["forms"], {WIDTHS: [str(width)] * n_groups})
    state, n_envs = saved["collector"], n_groups * width
    if len(state["environments"]) != n_envs:
        raise ValueError(
            f"`state` was saved from a vector environment, and cannot go on in processes with {width} single "
            "environments each: go on with `same` or `threaded`."
        )
    copies = state["copies"] if len(state["copies"]) > 1 else state["copies"] * n_groups
    return [
        {
            "forms": {**saved["forms"], WIDTHS: [str(width)]},
            "environments": saved["environments"],
            "collector": {
                **state,
                "row": {name: [x[columns].clone() for x in leaves] for name, leaves in state["row"].items()},
                "groups": [state["groups"][k]],
                "copies": [copies[k]],
                "untold": {**state["untold"], "may_warn": False},  # the consumer's process warns, for all groups
                "environments": state["environments"][columns],
            },
        }
        for k, columns in enumerate(split(n_envs, n_groups))
    ]


def pack_part(version: int, reply: Reply, fragment: Nested, final: Nested) -> dict[str, Any]:
    """Return a part that a process has collected and that no fragment has taken, with copies of its tensors."""
    return {
        "version": version,
        "reply": list(reply),
        "fragment": [x.clone() for x in nested.leaves(fragment)],
        "final": [x.clone() for x in nested.leaves(final)],
    }


def unpack_part(saved: Mapping[str, Any], shared: SharedFragment) -> tuple[int, Reply]:
    """Write the tensors of a part into shared memory, where its process would have left them; return the rest."""
    reply = Reply(*saved["reply"])
    final = nested.map(lambda x: x[: reply.n_finals], shared.final)
    for tree, values in ((shared.fragment, saved["fragment"]), (final, saved["final"])):
        for target, value in zip(nested.leaves(tree), values, strict=True):
            target.copy_(value)
    return saved["version"], reply
