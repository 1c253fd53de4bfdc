"""The copy of the learner's actor: it loads snapshots of the learner's weights, modes and plain attributes.

How the copy acts is in :mod:`rlplay.engine.acting.behaviour`. This module must not import queues or threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import BaseActorModule
from ...memory.lane import Lane, Place
from ..checks import check_actor
from ..plain_attributes import PlainWatch, apply_changes
from ..snapshot import Snapshot
from ..weights import check_same_names, check_same_weights, named_weights, restore_stores, weight_stores
from .copy_actor import copy_actor
from .copy_state import copy_state, load_copy_state, load_watch_state, pack_changes, unpack_changes, watch_state
from .parcel import packed
from .shared_memory import check_shared

__all__ = ["CopiedActor"]


class CopiedActor:
    """A copy of the actor with its own weights, on the actor's device.

    Attributes
    ----------
    keeps_nothing : bool
        Whether steps leave the copy as it was (:mod:`..independence`). False once plain attributes have changed.
    """

    def __init__(self, actor: BaseActorModule, lane: Lane, *, snapshot_in_place: bool = False) -> None:
        """Copy the actor.

        With ``snapshot_in_place`` a snapshot is written directly into the copy. This is right only if nothing is
        collected between taking a snapshot and collecting its fragment.

        Raises
        ------
        TypeError, ValueError
            See :func:`rlplay.engine.acting.checks.check_actor` and
            :func:`rlplay.engine.acting.copying.copy_actor.copy_actor`.
        """
        check_actor(actor)
        self._lane, self._snapshot_in_place = lane, snapshot_in_place
        self._copy = copy_actor(actor, lane.actor_device)
        self._module = self._copy.module
        self._modules = dict(self._module.named_modules())
        own = named_weights(self._modules)
        self._weights = {name: weight.detach() for name, weight in own.items()}
        self._weight_memory = list(zip(own.values(), self._weights.values(), strict=True))
        self._stores = weight_stores(self._module)
        self._plain_watch, self._plain_adopted = PlainWatch(dict(actor.named_modules())), 0
        self.keeps_nothing = False

    @property
    def module(self) -> BaseActorModule:
        """The copy itself."""
        return self._module

    @property
    def to_send(self) -> BaseActorModule:
        """What is to be pickled in order to send the copy to another process, where it arrives as a module."""
        return packed(self._copy)

    @property
    def weights(self) -> list[Tensor]:
        """The copy's parameters, then its buffers, in the order of a snapshot."""
        return list(self._weights.values())

    def publish(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights, in memory of the calling thread's current stream.

        With ``snapshot_in_place`` the weights are copied directly into the copy, and the snapshot has none.

        Raises
        ------
        ValueError
            If names, shapes or dtypes of parameters or buffers are no longer those of the copy, or if an attribute is
            no longer plain.
        """
        modules = dict(actor.named_modules())
        weights = named_weights(modules)
        check_same_names("parameters and buffers", self._weights, weights)
        check_same_names("modules", self._modules, modules)
        check_same_weights(self._weights, weights)
        check_shared(self._copy.shared, weights)
        plain = self._plain_watch.look(modules)
        sources = self._lane.steady([weights[name] for name in self._weights])
        snapshot: list[Tensor] = []
        if self._snapshot_in_place:
            self._lane.copy(self.weights, sources)
        else:
            snapshot = self._lane.clone(sources, Place.ACTOR)
        return Snapshot(snapshot, [modules[name].training for name in self._modules], plain)

    def adopt(self, snapshot: Snapshot) -> None:
        """Load a snapshot into the copy, in the collector's thread. Weights are written in place: addresses stay."""

        def restore_stores_modes_and_attributes() -> None:
            # during a step a module may have replaced its buffer by another tensor, or the memory of a weight
            restore_stores(self._stores)
            for weight, memory in self._weight_memory:
                if weight.data_ptr() != memory.data_ptr():
                    weight.data = memory
            for module, mode in zip(self._modules.values(), snapshot.modes, strict=True):
                if module.training != mode:
                    module.training = mode
            self._plain_adopted = apply_changes(self._modules, snapshot.plain, self._plain_adopted)

        if snapshot.plain.changes or len(set(snapshot.modes)) > 1:
            self.keeps_nothing = False  # the step may do something else than in the trial
        if not self._snapshot_in_place:
            self._lane.copy(self.weights, snapshot.weights)
        self._lane.launch(restore_stores_modes_and_attributes)

    @property
    def forms(self) -> list[str]:
        """The name, shape and dtype of each parameter and buffer, for comparisons and messages."""
        return [f"{name}: {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for name, x in self._weights.items()]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the copy that no snapshot contains. The copy must not act meanwhile."""
        restore_stores(self._stores)  # the next snapshot does so, too
        return {**copy_state(self._modules), "adopted": self._plain_adopted}

    def load_state_dict(self, state: Mapping[str, Any], *, before_trial: bool = False) -> None:
        """Continue from what :meth:`state_dict` returned, before the copy acts for the first time.

        ``before_trial``: a trial step comes before the first snapshot. Then plain attributes that the state lacks keep
        their values, since the trial step may read them.

        Raises
        ------
        ValueError
            The state is of another actor.
        """
        load_copy_state(self._modules, state, keep_others=before_trial)
        self._plain_adopted = state["adopted"]

    def watch_state(self) -> dict[str, Any]:
        """Return what has been seen of the learner's actor: which plain attributes the next snapshot brings."""
        return watch_state(self._plain_watch)

    def load_watch_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`watch_state` returned, before the first snapshot."""
        load_watch_state(self._plain_watch, state, self._modules.values())

    def pack_snapshot(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return a snapshot that is complete, as tensors on the host, numbers, strings and bytes."""
        weights = [weight.to("cpu", copy=True) for weight in snapshot.weights]
        return {"weights": weights, "modes": list(snapshot.modes), "plain": pack_changes(snapshot.plain)}

    def unpack_snapshot(self, state: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot that :meth:`pack_snapshot` has packed, in memory of the current stream."""
        weights = self._lane.clone(self._lane.steady(state["weights"]), Place.ACTOR)
        return Snapshot(weights, list(state["modes"]), unpack_changes(state["plain"], self._modules.values()))
