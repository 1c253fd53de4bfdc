"""Plays one episode in each environment, in the calling thread."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import torch

from ... import nested
from ...nested import Nested
from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..acting.torch_context import TorchContext
from ..concurrency.channel import Closed
from ..concurrency.exceptions import closed_on_error
from ..concurrency.progress import Progress, note_progress
from ..core import BaseActorModule
from ..envs.dialects import is_vector, warn_of_lost_seed
from ..envs.make import list_sources, make_environments
from ..envs.protocol import Environments
from ..envs.rows import Array
from ..feed.options import at_least, home_of, seed_of
from ..feed.serving import check_not_served
from ..memory.cuda import lane_between
from ..memory.lane import Place
from ..memory.layout import state_layout
from ..memory.slot import Blocks, GroupBlocks, RowLayout, Slot

__all__ = ["play_episodes"]


def play_episodes(
    envs: Any,
    actor: BaseActorModule,
    n_steps: int | None,
    render: bool,
    device: torch.device | str | None,
    progress: Progress,
) -> tuple[Array, Nested]:
    """Play every environment to the end of one episode; see :func:`rlplay.engine.rollout.evaluate.evaluate`.

    Warnings are shown at the line that called the caller of this function.
    """
    if n_steps is not None:
        at_least("n_steps", n_steps, 1)
    sources, seed = list_sources(envs), seed_of(None)
    for source in sources:
        warn_of_lost_seed(source, stacklevel=4)
    lane = lane_between(device, None, home_of(actor))
    check_not_served(sources)
    with torch.inference_mode(False):
        behaviour = Behaviour(actor, lane)
    with note_progress(progress):
        torch_context = TorchContext.here(lane.actor_device)
        with torch_context.defaults.for_environments():
            environments = make_environments(sources, seed, progress)

        def close() -> list[str]:
            with torch_context.defaults.for_environments():
                return environments.close()

        with closed_on_error(close), torch_context.applied():
            group = Group(0, slice(0, environments.n_envs), seed, lane, key=0)
            rows = RowLayout.of(state_layout(environments.obs, environments.act), {}, environments.n_envs)
            slot = Slot([rows], [], 2, lambda *form: lane.empty(Place.HOST, *form))
            played = _play(
                environments, behaviour, group, slot, progress, torch_context, n_steps, render,
                sticky=not is_vector(environments.instances[0]),
            )  # fmt: skip
        complaints = close()
    for complaint in [*complaints, *behaviour.warnings]:
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)
    return played


def _play(
    envs: Environments,
    behaviour: Behaviour,
    group: Group,
    slot: Slot,
    progress: Progress,
    torch_context: TorchContext,
    n_steps: int | None,
    render: bool,
    *,
    sticky: bool,
) -> tuple[Array, Nested]:
    """Step the environments until all episodes have ended; return the rewards and the actor's info.

    The slot has two rows: the current one, and the one that is written next. Raises ``Closed`` if the progress is
    halted.
    """
    (now, then), (_, outcome), _ = slot.turns[0]
    envs.begin(now)
    device = group.generator.device
    first = GroupBlocks(_first_row(slot, device), slice(0, envs.n_envs))
    info_layout, _ = behaviour.probe([group], [first], envs.act)
    rewards: list[Array] = []
    infos: list[list[Array]] = []
    running = np.ones(envs.n_envs, bool)
    while True:
        if progress.halted:
            raise Closed
        if render:
            torch_context.call_environments(envs.render)
        last = not running.any() or len(rewards) == n_steps
        progress.doing, progress.row = "actor.step", len(rewards)
        begun = now.fin.nonzero()[0].tolist()
        answer = behaviour.react(group, _first_row(slot, device).state, begun=begun, virtual=last)
        infos.append([_numpy(leaf[0]) for leaf in answer[behaviour.spec.n_acts :]])
        if last:
            break
        for value, row in zip(answer, then.act, strict=False):  # the leaves of the action come first
            row[...] = _numpy(value[0])
        slot.clear(0, 1)
        progress.doing = "env.step"
        ended = torch_context.call_environments(partial(envs.step, now, then, outcome, None, sticky=sticky))
        rewards.append(np.where(running, then.rew, np.float32(0)))
        running[ended] = False
        memory = slot.blocks[0].memory
        memory[0].copy_(memory[1])
    stacked = [np.stack(column) for column in zip(*infos, strict=True)]
    return np.stack(rewards), nested.structure(info_layout).unflatten(stacked)


def _numpy(x: torch.Tensor) -> Array:
    """Copy a tensor to numpy; bfloat16, which numpy does not have, becomes float32."""
    array: Array = (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy().copy()
    return array


def _first_row(slot: Slot, device: torch.device) -> Blocks:
    """Copy the current row of the slot to the actor's device."""
    blocks = slot.blocks[0]
    return Blocks(blocks.memory[:1].to(device, copy=True), blocks.layout)
