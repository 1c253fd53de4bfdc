"""Plays one episode in each environment."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from ... import nested
from ...nested import Nested
from ..acting.behaviour import Behaviour
from ..acting.checks import SLOW_RESET
from ..acting.group import Group
from ..acting.torch_context import TorchContext
from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress
from ..core import BaseActorModule
from ..envs.dialects import is_vector
from ..envs.info import Entries
from ..envs.make import list_sources, make_environments
from ..envs.protocol import Environments
from ..envs.rows import Array
from ..feed.build import claim
from ..feed.driver import noting
from ..feed.options import at_least, home_of, seed_of
from ..memory.cuda import lane_between
from ..memory.lane import Place
from ..memory.layout import fields_to_leaves, state_layout
from ..memory.slot import Slot

__all__ = []


def _evaluated(
    envs: Any,
    actor: BaseActorModule,
    n_steps: int | None,
    render: bool,
    device: torch.device | str | None,
    progress: Progress,
) -> tuple[Array, Nested]:
    if n_steps is not None:
        at_least("n_steps", n_steps, 1)
    sources, seed = list_sources(envs), seed_of(None)
    lane = lane_between(device, None, home_of(actor))
    with torch.inference_mode(False):
        behaviour = Behaviour(actor, lane)
    claim(sources, stacklevel=4)
    with noting(progress):
        stage = make_environments(
            envs if is_vector(envs) else sources, seed, Entries(()), progress, single_episode=True
        )
        try:
            with TorchContext.here(lane.actor_device).applied():
                group = Group(0, slice(0, stage.n_envs), seed, lane, key=0)
                layout = state_layout(fields_to_leaves(stage.obs), fields_to_leaves(stage.act))
                slot = Slot(layout, {}, [], 1, stage.n_envs, lambda *form: lane.empty(Place.HOST, *form))
                played = _play(stage, behaviour, group, slot, progress, n_steps, render, sticky=not is_vector(envs))
        except BaseException as error:
            for complaint in stage.close():
                add_note(error, complaint)
            raise
    for complaint in [*stage.close(), *([] if behaviour.resets_by_mask else [SLOW_RESET])]:
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)
    return played


def _play(
    envs: Environments,
    behaviour: Behaviour,
    group: Group,
    slot: Slot,
    progress: Progress,
    n_steps: int | None,
    render: bool,
    *,
    sticky: bool,
) -> tuple[Array, Nested]:
    (now, then), (outcome,) = slot.rows, slot.outcomes
    envs.begin(now)
    here = group.generator.device
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
        ended = envs.step(now, then, outcome, None, sticky=sticky)
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
