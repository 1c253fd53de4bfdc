"""The behaviour copy of the actor: what acts in the environments while the learner changes the original.

It adopts snapshots of the weights, and keeps a recurrent state and two random generators for each group of
environments. Neither queues nor environments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested, Structure
from ..core import BaseActorModule, State
from ..envs.spaces import along
from ..memory.lane import Lane, Place
from ..memory.layout import Leaf
from .checks import check_actor, check_answer, honours_mask
from .fast_modules import make_fast
from .group import Group
from .weights import named_weights, weight_places

__all__ = ["Behaviour", "Snapshot", "global_generator_kept"]


class Snapshot(NamedTuple):
    """An actor's weights (parameters, then buffers) at one moment, and its modules' train/eval modes."""

    weights: list[Tensor]
    modes: list[bool]


class Behaviour:
    """A copy of the actor that acts by itself, on a device of its own, with randomness of its own."""

    def __init__(self, actor: BaseActorModule, lane: Lane) -> None:
        """Copy the actor.

        Raises
        ------
        TypeError, ValueError
            See :func:`rlplay.engine.acting.checks.check_actor`.
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
        self._modules = dict(self._module.named_modules())
        self._drawing = [module for module in self._modules.values() if isinstance(module, BaseActorModule)]
        self._weights = {name: weight.detach() for name, weight in named_weights(self._modules).items()}
        # where each of them hangs: a module may well put another tensor into the place of its buffer
        self._places = [place for place in weight_places(self._module) if place.tensor is not None]
        self.resets_by_mask = True
        """Whether the actor's ``reset`` takes a mask (see :func:`rlplay.engine.acting.checks.honours_mask`)."""
        self.recurrent = False
        """Whether it has a recurrent state."""
        self.at_once = False
        """Whether nothing is collected between a snapshot and its fragment, so that the copy itself can take it."""
        self.eager_because = ""
        """What is to be warned of at the call where its step was to be compiled, and cannot be."""
        self.unsaid = ""
        """What is to be warned of with the next fragment."""
        self._drawn_from: torch.Generator | None = None
        self._act_spec: Structure
        self._info_spec: Structure

    @property
    def module(self) -> BaseActorModule:
        """The copy itself."""
        return self._module

    @property
    def weights(self) -> list[Tensor]:
        """Its parameters and buffers, in the order of a snapshot."""
        return list(self._weights.values())

    def publish(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights, in memory of the calling thread's current stream.

        Without weights, if the copy has taken them over already (:attr:`at_once`).

        Raises
        ------
        ValueError
            If names, shapes or dtypes of parameters or buffers are no longer those of the copy.
        """
        modules = dict(actor.named_modules())
        weights = named_weights(modules)
        for what, then, now in (
            ("parameters and buffers", self._weights, weights),
            ("modules", self._modules, modules),
        ):
            if then.keys() != now.keys():
                raise ValueError(
                    f"the actor no longer has the {what} that it had when the feed was made: added "
                    f"{sorted(now.keys() - then.keys())}, gone {sorted(then.keys() - now.keys())}. Make a new feed "
                    "after such a change."
                )
        snapshot = []
        for name, mine in self._weights.items():
            theirs = weights[name]
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise ValueError(
                    f"the actor's {name!r} has changed its form: expected shape {tuple(mine.shape)}, dtype "
                    f"{mine.dtype}, got {tuple(theirs.shape)}, {theirs.dtype}. Make a new feed after such a change."
                )
            if not self.at_once:
                snapshot.append(self._lane.empty(Place.ACTOR, theirs.shape, theirs.dtype))
        target = self.weights if self.at_once else snapshot
        self._lane.copy(target, self._lane.steady([weights[name] for name in self._weights]))
        return Snapshot(snapshot, [modules[name].training for name in self._modules])

    def adopt(self, snapshot: Snapshot) -> None:
        """Act with these weights from now on. They are written in place: their addresses stay."""

        def switched() -> None:
            for store, name, weight in self._places:
                if store[name] is not weight:
                    store[name] = weight
            for module, mode in zip(self._modules.values(), snapshot.modes, strict=True):
                if module.training != mode:
                    module.training = mode

        if not self.at_once:
            self._lane.copy(self.weights, snapshot.weights)
        self._lane.launch(switched)

    def bind_rows(self, groups: Sequence[Group], state: State, info: Nested) -> None:
        """Learn where, beside the actor, all rows lie for good; in the collector's thread, before the first step.

        Parameters
        ----------
        state, info : nested tensors, ``(1+T, B, ...)``
            The rows that are reacted to, and those of the actor's infos.
        """

    def begin(self, group: Group, fin: Tensor, begun: Sequence[int]) -> list[Tensor]:
        """Reset the group's recurrent state where an episode has just begun, and return its leaves."""
        self._draw_from(group.generator)
        if begun:
            group.hx = self._reset(group.hx, fin, begun)
        leaves = nested.leaves(group.hx)
        _check_shapes("hx", group.shapes[1], [part.shape for part in leaves])
        return leaves

    def keep(self, group: Group) -> None:
        """Make the group's recurrent state its own: an actor may answer with a view of what it was given."""
        group.hx = nested.map(torch.clone, group.hx)

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
        generator = group.virtual_generator if virtual else group.generator
        if self._drawn_from is not generator:
            self._draw_from(generator)
        hx = self._reset(group.hx, state.fin[0], begun) if begun else group.hx
        if virtual:
            hx = nested.map(torch.clone, hx)  # should the actor advance it in place
        act, new, info = self._module.step(*state, hx=hx, virtual=virtual)
        if not virtual:
            group.hx = new
        acts: list[Tensor] = self._act_spec.flatten_up_to(act)  # type: ignore[assignment]
        infos: list[Tensor] = self._info_spec.flatten_up_to(info)  # type: ignore[assignment]
        _check_shapes("answer (act or info)", group.shapes[0], [part.shape for part in acts + infos])
        dtypes = [part.dtype for part in acts + infos]
        if dtypes != self._dtypes and not all(map(_alike, dtypes, self._dtypes)):  # or it would be rounded, silently
            raise ValueError(
                f"the dtypes of the actor's act or info have changed: expected {self._dtypes}, got {dtypes}."
            )
        return acts, infos

    def answer(self, group: Group, state: State, rows: list[Tensor], *, begun: Sequence[int], virtual: bool) -> None:
        """React to one row, and write the answer into its rows: the action, unless it is virtual, and the info."""
        acts, infos = self.react(group, state, begun=begun, virtual=virtual)
        if rows:
            torch._foreach_copy_(rows, infos if virtual else acts + infos, non_blocking=True)

    def _draw_from(self, generator: torch.Generator) -> None:
        self._drawn_from = generator
        for module in self._drawing:
            module.__dict__["generator"] = generator  # past torch's own bookkeeping of attributes

    def _reset(self, hx: Nested, fin: Tensor, begun: Sequence[int]) -> Nested:
        if not self.recurrent:
            return hx
        if self.resets_by_mask:
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
        make_fast(self._module)
        generator = torch.Generator(self._lane.actor_device).manual_seed(0)
        self._draw_from(generator)
        for group in groups:
            part = nested.map(lambda x, columns=group.columns: x[:, columns].clone(), state)
            with global_generator_kept(self._lane.actor_device):
                answer = self._module.step(*part, hx=None, virtual=True)
                acted, hx, info = check_answer(answer, act, group.width)
                if group is groups[0]:
                    self.recurrent = bool(nested.leaves(hx))
                    self.resets_by_mask = honours_mask(self._module, hx, group.width, self._lane.actor_device)
                    self._act_spec = nested.structure(along(act, acted, "act"))
                    self._info_spec = nested.structure(info)
                everybody = torch.ones(group.width, dtype=torch.bool, device=self._lane.actor_device)
                group.hx = self._reset(hx, everybody, range(group.width))
            answers = self._act_spec.flatten_up_to(acted) + nested.leaves(info)
            group.shapes = [part.shape for part in answers], [part.shape for part in nested.leaves(group.hx)]
            self._dtypes = [part.dtype for part in answers]
        return (
            nested.map(lambda x: Leaf(tuple(x.shape[2:]), x.dtype), info),
            nested.map(lambda x: Leaf((x.shape[0], *x.shape[2:]), x.dtype), group.hx),
        )


@contextmanager
def global_generator_kept(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they are."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _check_shapes(what: str, shapes: list[torch.Size], got: list[torch.Size]) -> None:
    if got != shapes:  # or they would be broadcast, silently
        expected, found = next(pair for pair in zip(shapes, got, strict=True) if pair[0] != pair[1])
        raise ValueError(f"the actor's {what} has changed its shape: expected {tuple(expected)}, got {tuple(found)}.")


def _alike(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether dtypes differ at most in precision, as they do when the default dtype is changed in between."""
    return one == other or (one.is_floating_point and other.is_floating_point)
