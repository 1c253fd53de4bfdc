"""Playing whole episodes to see how good an actor is. Not a feed: it returns when they have ended."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from ... import nested
from ...nested import Nested
from ..ambient import Ambient
from ..behaviour import Behaviour, Group
from ..core import BaseActorModule
from ..crew import Faces
from ..driver import noting
from ..environment import is_vector
from ..info import Entries
from ..inspection import SLOW_RESET
from ..opening import at_least, claim, faces, home_of, listed, seed_of
from ..rows import Array
from ..storage import Slot, fields_to_leaves, state_layout
from ..trace import Progress, note
from ..transfer import Place, lane_between

__all__ = ["evaluate"]


def evaluate(
    envs: Any,
    actor: BaseActorModule,
    *,
    n_steps: int | None = None,
    render: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Array, Nested]:
    """Play every environment to the end of one episode.

    Whether the actor is greedy is for its train/eval mode to say. Seeds are drawn from torch's global generator, so
    that ``torch.manual_seed`` makes an evaluation repeat.

    Parameters
    ----------
    envs : list of environments, list of factories, or one vector environment
        As in :func:`rlplay.engine.rollout.threaded.rollout`. Each is reset at the call.
    actor : BaseActorModule
        Copied at the call, with its train/eval mode.
    n_steps : int, optional
        Stop after so many steps of each environment, even if its episode has not ended.
    render : bool
        Call ``render`` of every environment after the reset and after each step.
    device : torch.device, optional
        Where the copy of the actor runs; by default where the actor's parameters are.

    Returns
    -------
    rewards : float32 array, ``(T, B)``
        ``T`` is the length of the longest episode. Rewards after the end of an episode are 0, so the returns are
        ``rewards.sum(axis=0)``.
    info : nested arrays, ``(1+T, B, ...)``
        The actor's info (bfloat16 as float32). Row ``T`` is its virtual reaction to the last row. After the end of
        an episode the environment stands still, and its last observation is repeated, with ``fin`` True. (The parts
        of a vector environment go on instead.)

    Raises
    ------
    TypeError, ValueError
        As ``rollout`` does, if the arguments are not as described.
    """
    if n_steps is not None:
        at_least("n_steps", n_steps, 1)
    sources, seed = listed(envs), seed_of(None)
    lane = lane_between(device, None, home_of(actor))
    with torch.inference_mode(False):
        behaviour, progress = Behaviour(actor, lane), Progress()
    claim(sources, stacklevel=3)
    with noting(progress):
        stage = faces(envs if is_vector(envs) else sources, seed, Entries(()), progress, once=True)
        try:
            with Ambient.here(lane.actor_device).applied():
                group = Group(0, slice(0, stage.n_envs), seed, lane.actor_device, key=0)
                layout = state_layout(fields_to_leaves(stage.obs), fields_to_leaves(stage.act))
                slot = Slot(layout, {}, [], 1, stage.n_envs, lambda *form: lane.empty(Place.HOST, *form))
                played = _play(stage, behaviour, group, slot, progress, n_steps, render, sticky=not is_vector(envs))
        except BaseException as error:
            for complaint in stage.close():
                note(error, complaint)
            raise
    for complaint in [*stage.close(), *([] if behaviour.resets_by_mask else [SLOW_RESET])]:
        warnings.warn(complaint, RuntimeWarning, stacklevel=2)
    return played


def _play(
    envs: Faces,
    behaviour: Behaviour,
    group: Group,
    slot: Slot,
    progress: Progress,
    n_steps: int | None,
    render: bool,
    *,
    sticky: bool,
) -> tuple[Array, Nested]:
    (now, then), (marks,) = slot.rows, slot.marks
    envs.begin(now)
    here = group.acting.device
    info_layout, _ = behaviour.probe([group], _first_row(slot, here), envs.act)
    rewards: list[Array] = []
    infos: list[list[Array]] = []
    going_on = np.ones(envs.n_envs, bool)
    while True:
        if render:
            envs.render()
        last = not going_on.any() or len(rewards) == n_steps
        progress.doing, progress.row = "actor.step", len(rewards)
        begun = now.fin.nonzero()[0].tolist()
        act, info = behaviour.react(group, _first_row(slot, here), begun=begun, virtual=last)
        infos.append([_numpy(leaf[0]) for leaf in info])
        if last:
            break
        for value, row in zip(act, then.act, strict=True):
            row[...] = _numpy(value[0])
        slot.clear()
        progress.doing = "env.step"
        ended = envs.step(now, then, marks, None, sticky=sticky)
        rewards.append(np.where(going_on, then.rew, np.float32(0)))
        going_on[ended] = False
        for leaf in nested.leaves(slot.state):
            leaf[0].copy_(leaf[1])
    stacked = [np.stack(column) for column in zip(*infos, strict=True)]
    return np.stack(rewards), nested.structure(info_layout).unflatten(stacked)


def _numpy(x: torch.Tensor) -> Array:
    """Copy to numpy, which has no bfloat16: that comes as float32."""
    array: Array = (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy().copy()
    return array


def _first_row(slot: Slot, device: torch.device) -> Nested:
    return nested.map(lambda x: x[:1].to(device, copy=True), slot.state)
