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
``autocast``       the actor's (``TorchContext.autocast_state``)
``delivered``      version, number of steps, and episodes that were not taken
=================  =====================================================================================================

``same`` saves ``lag`` tokens, the other engines as many deliveries; all of them go on from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ... import __version__
from ..acting.noise import seed_from
from ..acting.torch_context import TorchContext
from ..collector.messages import Collecting, Plan, Token
from ..collector.saving import check_same, pack_delivery, unpack_delivery
from ..memory.lane import Lane
from .driver import Driver
from .options import Options

__all__ = ["SavedStream", "with_saved_seed"]


class SavedStream:
    """What a feed needs to save its stream, and to go on from a saved one.

    Parameters
    ----------
    options : Options
        Its ``state`` is the saved stream that the feed goes on from, or None.
    plan : Plan
        Has the seed of the feed and the recorded info entries.
    actor_device : torch.device, optional
        The device of the behaviour copy; None if it is on the host.
    """

    def __init__(self, options: Options, plan: Plan, actor_device: torch.device | None) -> None:
        """Compare the options with those that the state was saved with.

        Raises
        ------
        ValueError
            One of them is another.
        """
        self._settings, self._seed = _settings_of(options, plan, actor_device), plan.seed
        self._saved: Mapping[str, Any] | None = options.state
        if self._saved is not None:
            check_same(self._saved["settings"], self._settings)

    @property
    def counts(self) -> tuple[int, Mapping[str, Any]] | None:
        """The number of asks, and what was delivered, of the state that the feed goes on from; None without one."""
        return None if self._saved is None else (self._saved["asked"], self._saved["delivered"])

    def context(self, now: TorchContext, *, asks: bool = False) -> TorchContext:
        """Return the settings for the actor: those of the calling thread, but with the autocast of the saved stream.

        ``asks``: the calling thread asks for the first fragment of this feed. If the saved stream was not asked for any
        fragment, this is the first ask, which decides the autocast.
        """
        saved = self._saved
        return now if saved is None or (asks and not saved["asked"]) else now.with_autocast(saved["autocast"])

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
            return collector.state_dict(whole=environments == "save"), collector.forms

        (state, forms), found, waiting = driver.call(in_collectors_thread)
        if self._saved is not None:  # nothing has been asked for since
            deliveries, tokens = list(self._saved["deliveries"]), list(self._saved["tokens"])
        else:
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
            "autocast": driver.collector.torch_context.autocast_state(),
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


def with_saved_seed(options: Options) -> Options:
    """Return the options with the seed of the saved stream, or with one derived from it where episodes begin anew.

    ``torch``'s global generator is not drawn from then. Without a saved stream the options stay as they are.

    Raises
    ------
    TypeError, ValueError
        ``options.state`` is no saved stream of this version of the library.
    """
    saved = options.state
    if saved is None:
        return options
    _check_version(saved)
    seed = saved["seed"]
    if saved["environments"] == "restart":
        seed = seed_from(np.random.SeedSequence((seed, saved["collector"]["n_collected"], 1)))
    return replace(options, seed=seed)


def _check_version(state: Any) -> None:
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


def _settings_of(options: Options, plan: Plan, actor_device: torch.device | None) -> dict[str, Any]:
    names = ("n_steps", "lag", "sticky", "final", "compile")
    whole = options.n_per_batch == options.n_actors
    return {
        **{f"`{name}`": getattr(options, name) for name in names},
        "`groups`, or `n_actors`": options.groups * options.n_actors,  # one of them is 1
        "`n_per_batch`": "all" if whole else options.n_per_batch,
        "`info`": [f"{entry.name}: {entry.field}" for entry in plan.entries.entries],
        "`shard`": None if options.shard is None else list(options.shard),
        "the actor's device": "the host" if actor_device is None else f"a device ({actor_device.type})",
    }
