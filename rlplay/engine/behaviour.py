"""The behaviour copy of the actor: what acts in the environments while the learner changes the original.

It adopts snapshots of the weights, and keeps a recurrent state and two random generators for each group of
environments. Neither queues nor environments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import nested
from ..nested import Nested, Structure
from .core import BaseActorModule, State
from .inspection import check_actor, check_answer, honours_mask
from .storage import Leaf
from .transfer import Lane, Place

__all__ = ["Behaviour", "Group", "Snapshot", "split"]


class Snapshot(NamedTuple):
    """An actor's weights (parameters, then buffers) at one moment, and its modules' train/eval modes."""

    weights: list[Tensor]
    modes: list[bool]


class Group:
    """A contiguous part of the environments, inferred as a batch of its own.

    Attributes
    ----------
    columns : slice
        The environments, out of all.
    hx : nested tensors, ``(L, b, ...)``
        The recurrent state before the next step (not yet reset where an episode has just begun).
    acting, looking : torch.Generator
        The random generators for actions, and for virtual steps.
    """

    def __init__(self, index: int, columns: slice, seed: int, device: torch.device) -> None:
        """Seed the generators: by keys of two numbers, where environments have keys of one."""
        self.columns = columns
        self.hx: Nested = ()
        self.acting, self.looking = (
            torch.Generator(device).manual_seed(_seed_of(np.random.SeedSequence(seed, spawn_key=(index, use))))
            for use in (0, 1)
        )

    @property
    def width(self) -> int:
        """The number of environments in this group."""
        return int(self.columns.stop - self.columns.start)


def split(n_envs: int, groups: int) -> list[slice]:
    """Split the environments into contiguous parts, equal up to one (the first ones are the larger)."""
    edges = [int(part[0]) for part in np.array_split(np.arange(n_envs), groups)] + [n_envs]
    return [slice(start, stop) for start, stop in pairwise(edges)]


class Behaviour:
    """A copy of the actor that acts by itself, on a device of its own, with randomness of its own."""

    def __init__(self, actor: BaseActorModule, lane: Lane) -> None:
        """Copy the actor.

        Raises
        ------
        TypeError, ValueError
            See :func:`rlplay.engine.inspection.check_actor`.
        """
        check_actor(actor)
        self._lane = lane
        try:
            self._module = copy.deepcopy(actor).to(lane.actor_device).requires_grad_(False)
        except Exception as error:
            raise TypeError(
                f"the actor cannot be copied: copy.deepcopy failed with {error!r}. Tensors that it keeps must be "
                "parameters, buffers or detached; make what cannot be copied inside `step`, or define __deepcopy__."
            ) from error
        self._modules = list(self._module.modules())
        self._drawing = [module for module in self._modules if isinstance(module, BaseActorModule)]
        self._names, self._weights = _weights(self._module)
        self._resets_by_mask = True
        self._act_spec: Structure
        self._info_spec: Structure

    def publish(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights, in memory of the calling thread's current stream.

        Raises
        ------
        ValueError
            If names, shapes or dtypes of parameters or buffers are no longer those of the copy.
        """
        names, weights = _weights(actor)
        modules = list(actor.modules())
        if names != self._names or len(modules) != len(self._modules):
            added, gone = sorted(set(names) - set(self._names)), sorted(set(self._names) - set(names))
            raise ValueError(
                "the actor no longer has the parameters, buffers and modules that it had when the feed was made: "
                f"added {added}, gone {gone}. Make a new feed after such a change."
            )
        snapshot = []
        for name, mine, theirs in zip(names, self._weights, weights, strict=True):
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise ValueError(
                    f"the actor's {name!r} has changed its form: expected shape {tuple(mine.shape)}, dtype "
                    f"{mine.dtype}, got {tuple(theirs.shape)}, {theirs.dtype}. Make a new feed after such a change."
                )
            snapshot.append(self._lane.empty(Place.ACTOR, theirs.shape, theirs.dtype))
        self._lane.copy(snapshot, self._lane.steady(weights))
        return Snapshot(snapshot, [module.training for module in modules])

    def adopt(self, snapshot: Snapshot) -> None:
        """Act with these weights from now on. They are written in place: their addresses stay."""

        def switched() -> None:
            for module, mode in zip(self._modules, snapshot.modes, strict=True):
                module.training = mode

        self._lane.copy(self._weights, snapshot.weights)
        self._lane.launch(switched)

    def begin(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun, and return its leaves."""
        group.hx = self._reset(group.hx, fin, begun)
        return nested.leaves(group.hx)

    def react(
        self, group: Group, state: State, *, begun: Sequence[int], virtual: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """React to one row, as the group; unless it is virtual, the recurrent state advances.

        Parameters
        ----------
        state : State of tensors, ``(1, b, ...)``, on the actor's device
        begun : sequence of int
            Where, in the group, an episode has just begun, so that the recurrent state is to be reset.

        Returns
        -------
        lists of tensors, ``(1, b, ...)``
            The leaves of the action, and of the info.
        """
        hx = self._reset(group.hx, state.fin[0], begun)
        self._draw_from(group.looking if virtual else group.acting)
        act, new, info = self._module.step(*state, hx=hx, virtual=virtual)
        if not virtual:
            group.hx = new
        acted: list[Tensor] = self._act_spec.flatten_up_to(act)  # type: ignore[assignment]
        infos: list[Tensor] = self._info_spec.flatten_up_to(info)  # type: ignore[assignment]
        dtypes = [part.dtype for part in acted + infos]
        if dtypes != self._dtypes:  # or it would be rounded, silently
            raise ValueError(
                f"the dtypes of the actor's act or info have changed: expected {self._dtypes}, got {dtypes}."
            )
        return acted, infos

    def _draw_from(self, generator: torch.Generator) -> None:
        for module in self._drawing:
            module.__dict__["generator"] = generator  # past torch's own bookkeeping of attributes

    def _reset(self, hx: Nested, fin: Tensor, begun: Sequence[int]) -> Nested:
        if not begun or not nested.leaves(hx):
            return hx
        if self._resets_by_mask:
            return self._module.reset(hx, fin)
        for at in begun:
            hx = self._module.reset(hx, at)
        return hx

    def probe(self, groups: Sequence[Group], state: State, act: Nested) -> tuple[Nested, Nested]:
        """Let the actor react to the first row, virtually, and see what its answers look like.

        Sets the first recurrent state of each group, and draws nothing from any generator that is used later.

        Parameters
        ----------
        state : State of tensors, ``(1, B, ...)``, on the actor's device
        act : nested Field
            What the action space says of one action.

        Returns
        -------
        info, hx : nested Leaf
            What the leaves of the actor's info and recurrent state look like; the latter without the batch.

        Raises
        ------
        TypeError, ValueError
            If an answer is not of the form that the contract asks for.
        """
        generator = torch.Generator(self._lane.actor_device).manual_seed(0)
        self._draw_from(generator)
        for group in groups:
            part = nested.map(lambda x, columns=group.columns: x[:, columns].clone(), state)
            with _global_generator_kept(self._lane.actor_device):
                answer = self._module.step(*part, hx=None, virtual=True)
                acted, hx, info = check_answer(answer, act, group.width)
                if group is groups[0]:
                    self._resets_by_mask = honours_mask(self._module, hx, group.width, self._lane.actor_device)
                everybody = torch.ones(group.width, dtype=torch.bool, device=self._lane.actor_device)
                group.hx = self._reset(hx, everybody, range(group.width))
        self._act_spec, self._info_spec = nested.structure(act), nested.structure(info)
        self._dtypes = [part.dtype for part in self._act_spec.flatten_up_to(acted) + nested.leaves(info)]
        return (
            nested.map(lambda x: Leaf(tuple(x.shape[2:]), x.dtype), info),
            nested.map(lambda x: Leaf((x.shape[0], *x.shape[2:]), x.dtype), group.hx),
        )


def _weights(module: nn.Module) -> tuple[list[str], list[Tensor]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, _ in named], [weight.detach() for _, weight in named]


def _seed_of(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def _global_generator_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
