"""The state of a stream of fragments: what it consists of, how it is compared with a feed, how a feed goes on from it.

=================  =====================================================================================================
``rlplay``         the version of the library
``settings``       the options that decide the fragments
``forms``          names, shapes and dtypes of what environments and actor have
``seed``           the seed of the feed
``environments``   "save" or "restart"
``collector``      what the collector has between two fragments (``Collector.state_dict``)
``tokens``         snapshots under way, whose fragments are not collected yet
``deliveries``     fragments that are collected, but not delivered
``asked``          the number of asks so far
``delivered``      version, number of steps, and episodes that were not taken
=================  =====================================================================================================

``same`` saves ``lag`` tokens, ``threaded`` as many deliveries; either goes on from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from ... import __version__
from ..acting.torch_context import TorchContext
from ..collector.collector import Collector
from ..collector.messages import Collecting, Plan, Token
from ..collector.saving import pack_delivery, unpack_delivery
from ..memory.lane import Lane, Place
from .driver import Driver
from .options import Options

__all__ = ["SavedStream", "check_version", "prepare_resumed", "with_saved_seed"]

_MOST_SHOWN = 3


class SavedStream:
    """What a feed needs to save its stream, and to go on from a saved one.

    Parameters
    ----------
    options : Options
        Its ``state`` is the saved stream that the feed goes on from, or None.
    plan : Plan
        Has the seed of the feed and the recorded info entries.
    """

    def __init__(self, options: Options, plan: Plan, lane: Lane) -> None:
        """Compare the options with those that the state was saved with.

        Raises
        ------
        ValueError
            One of them is another.
        """
        self._settings, self._seed = _settings_of(options, plan, lane), plan.seed
        self._saved: Mapping[str, Any] | None = options.state
        if self._saved is not None:
            _check_same(self._saved["settings"], self._settings)

    @property
    def counts(self) -> tuple[int, Mapping[str, Any]] | None:
        """The number of asks, and what was delivered, of the state that the feed goes on from; None without one."""
        return None if self._saved is None else (self._saved["asked"], self._saved["delivered"])

    def put_under_way(self, driver: Driver, lane: Lane) -> None:
        """Hand the saved deliveries and tokens to the driver; in the consumer's thread, before its first token."""
        if self._saved is None:
            return
        collector, saved = driver.collector, self._saved
        driver.give_early([unpack_delivery(one, collector.blank(), lane) for one in saved["deliveries"]])
        for one in saved["tokens"]:
            snapshot = collector.unpack_snapshot(one["snapshot"])
            driver.give(Token(one["version"], snapshot, collector.blank(), lane.current, lane.record()))
        self._saved = None

    def save(
        self, driver: Driver, lane: Lane, asked: int, delivered: Mapping[str, Any], environments: str
    ) -> dict[str, Any]:
        """Return the state of the stream; in the consumer's thread."""

        def in_collectors_thread(collector: Collecting) -> tuple[dict[str, Any], Any]:
            return collector.state_dict(whole=environments == "save"), cast(Collector, collector).forms

        state, forms = driver.call(in_collectors_thread)
        if self._saved is not None:  # nothing has been asked for since
            deliveries, tokens = list(self._saved["deliveries"]), list(self._saved["tokens"])
        else:
            found, waiting = driver.under_way()
            deliveries = [pack_delivery(delivery, lane) for delivery in found]
            tokens = _pack_tokens(waiting, driver.collector, lane)
        return {
            "rlplay": __version__,
            "settings": self._settings,
            "forms": forms,
            "seed": self._seed,
            "environments": environments,
            "collector": state,
            "tokens": tokens,
            "deliveries": deliveries,
            "asked": asked,
            "delivered": dict(delivered),
        }


def _pack_tokens(tokens: list[Token], collector: Collecting, lane: Lane) -> list[dict[str, Any]]:
    """Return tokens in a form that can be saved. A snapshot that several tokens share is saved once."""
    packed: dict[int, dict[str, Any]] = {}
    for token in tokens:
        if id(token.snapshot) not in packed:
            lane.host_wait(token.ready)
            packed[id(token.snapshot)] = collector.pack_snapshot(token.snapshot)
    return [{"version": token.version, "snapshot": packed[id(token.snapshot)]} for token in tokens]


def check_version(state: Any) -> None:
    """Check that ``state`` was returned by ``feed.state_dict()`` of this version of the library.

    Raises
    ------
    TypeError
        It is something else.
    ValueError
        It is of another version.
    """
    if not isinstance(state, Mapping) or not {"rlplay", "settings", "collector"} <= state.keys():
        got = f"a dict with {sorted(map(str, state))[:5]}" if isinstance(state, Mapping) else type(state).__name__
        raise TypeError(f"`state` must be what `feed.state_dict()` has returned, or None, got {got}.")
    if state["rlplay"] != __version__:
        raise ValueError(
            f"`state` was saved by rlplay {state['rlplay']}, and this is rlplay {__version__}: go on with the version "
            "that has saved it, or begin anew from the weights."
        )


def with_saved_seed(options: Options) -> Options:
    """Return the options with the seed of the saved stream; where episodes begin anew, with one that follows from it.

    ``torch``'s global generator is not drawn from then.
    """
    saved = options.state
    if saved is None:
        return options
    seed = saved["seed"]
    if saved["environments"] == "restart":
        (drawn,) = np.random.SeedSequence((seed, saved["collector"]["n_collected"], 1)).generate_state(1, np.uint64)
        seed = int(drawn) >> 1
    return replace(options, seed=seed)


def prepare_resumed(collector: Collector, saved: Mapping[str, Any], torch_context: TorchContext) -> None:
    """Let a new collector go on from a saved stream, and prepare it; in the collector's thread.

    Raises
    ------
    ValueError
        Environments or actor are others than those of the saved stream.
    """
    _check_same(saved["forms"], collector.forms)
    collector.load_state_dict(saved["collector"], whole=saved["environments"] == "save")
    collector.prepare(torch_context)
    _check_same(saved["forms"], collector.forms)  # the actor's answers are known now


def _settings_of(options: Options, plan: Plan, lane: Lane) -> dict[str, Any]:
    names = ("n_steps", "lag", "groups", "sticky", "final", "compile")
    on_host = lane.shared(Place.ACTOR, Place.HOST)
    return {
        **{f"`{name}`": getattr(options, name) for name in names},
        "`info`": [f"{entry.name}: {entry.field}" for entry in plan.entries.entries],
        "`shard`": None if options.shard is None else list(options.shard),
        "the actor's device": "the host" if on_host else f"a device ({lane.actor_device.type})",
    }


def _check_same(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
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
