"""What all replay buffers have in common: a store of rows and a sampler of items, which speak to each other by ids."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..engine import Final, Fragment
from .batches import Batch, Sequences, sequences, transitions
from .indices import Sampler
from .store import Store

__all__ = ["Buffer", "check_fraction"]


class Buffer:
    """Everything but the priorities, and what the methods for sampling are called with."""

    def __init__(self, capacity: int, sequences: bool, device: torch.device | str | None) -> None:
        _check_count("capacity", capacity)
        self.capacity = int(capacity)
        self._sequences = sequences
        self._device = None if device is None else torch.device(device)
        self._parts: tuple[Store, Sampler] | None = None

    def __len__(self) -> int:
        """How many environment steps are held, those that are not valid included."""
        if self._parts is None:
            return 0
        store, _ = self._parts
        return len(store) * store.n_steps * store.n_envs

    @torch.no_grad()
    def commit(self, fragment: Fragment) -> None:
        """Copy a fragment into the buffer, over the oldest one if it is full.

        The first fragment decides on T, B, structure, shapes and dtypes, and on whether there is ``final``; memory for
        all is taken then. A buffer of transitions keeps states and ends, and the true last observations. One of
        sequences keeps all there is: strip what is not wanted beforehand, ``fragment._replace(actor=())``. The host
        does not wait for the device, unless the fragment is on another one than the buffer.

        Parameters
        ----------
        fragment : Fragment
            On any device. It stays the caller's.

        Raises
        ------
        ValueError
            The fragment is larger than the capacity, or unlike the first one. The buffer is as it was.
        """
        if not self._sequences:
            fragment = _for_transitions(fragment)
        store, sampler = self._parts or self._make_parts(Store.like(fragment, self.capacity, self._device))
        store.check(fragment)
        store.commit(fragment)
        valid = fragment.env.valid.to(store.device)
        sampler.issue(valid.any(dim=0) if self._sequences else valid.flatten())
        self._parts = store, sampler

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is held, for ``torch.save``.

        The large tensors are the buffer's own, as those of a torch module are: save or copy them before the next
        commit. ``torch.load(..., weights_only=True)`` reads it back; if observations, actions or actor info are named
        tuples, their classes must be allowed by ``torch.serialization.add_safe_globals``.
        """
        parts = None if self._parts is None else [part.state_dict() for part in self._parts]
        return {"made_with": self._made_with(), "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over, as copies, what a buffer made with the same arguments held; ``device`` may be another.

        Under the same generator the same samples follow.

        Raises
        ------
        ValueError
            The other buffer was made with other arguments. This one is as it was.
        """
        if state["made_with"] != self._made_with():
            raise ValueError(
                f"The buffer must be made with the arguments of the one that is loaded, {state['made_with']}; it was "
                f"made with {self._made_with()}."
            )
        if state["parts"] is None:
            self._parts = None
            return
        store, sampler = self._make_parts(Store.restored(state["parts"][0], self._device))
        sampler.load_state_dict(state["parts"][1])
        self._parts = store, sampler

    def _made_with(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "capacity": self.capacity, "sequences": self._sequences}

    def _make_parts(self, store: Store) -> tuple[Store, Sampler]:
        """Put a sampler, which has seen nothing, beside a store."""
        n_items = store.n_envs if self._sequences else store.n_steps * store.n_envs
        return store, Sampler(store.n_shelves, n_items, store.device)

    def _transitions(self, n: int, beta: float, generator: torch.Generator | None, n_steps: int, gamma: float) -> Batch:
        if self._sequences:
            raise RuntimeError("This is a buffer of sequences: call `sample_sequences`, or make it `sequences=False`.")
        _check_count("n_steps", n_steps)
        check_fraction("gamma", gamma)
        store, ids, weight = self._draw(n, beta, generator)
        return transitions(store, ids, weight, n_steps=n_steps, gamma=gamma)

    def _columns(self, n: int, beta: float, generator: torch.Generator | None) -> Sequences:
        if not self._sequences:
            raise RuntimeError("This is a buffer of transitions: call `sample`, or make it `sequences=True`.")
        return sequences(*self._draw(n, beta, generator))

    def _draw(self, n: int, beta: float, generator: torch.Generator | None) -> tuple[Store, Tensor, Tensor]:
        """Draw ids, with importance weights: ``(N P(i))^-beta`` over its maximum, from which ``N`` cancels."""
        _check_count("n", n)
        check_fraction("beta", beta)
        if self._parts is None:
            raise RuntimeError("There is nothing to sample: the buffer is empty; `commit` a fragment first.")
        store, sampler = self._parts
        ids, priorities = sampler.draw(n, generator)
        weight = (priorities.min() / priorities).pow(beta).masked_fill(priorities == 0, 0)
        return store, ids, weight.float()


def _for_transitions(fragment: Fragment) -> Fragment:
    """Strip what a transition has no need of."""
    env = fragment.env._replace(info={})
    if isinstance(env.final, Final):
        env = env._replace(final=env.final._replace(actor=()))
    return fragment._replace(actor=(), env=env, hx=())


def _check_count(name: str, x: Any) -> None:
    if not isinstance(x, Integral):
        raise TypeError(f"`{name}` must be a whole number, got {x!r}.")
    if x < 1:
        raise ValueError(f"`{name}` must be at least 1, got {x}.")


def check_fraction(name: str, x: float) -> None:
    """Refuse what is no number in [0, 1]."""
    if not isinstance(x, Real):
        raise TypeError(f"`{name}` must be a number, got {x!r}.")
    if not 0 <= x <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {x}.")
