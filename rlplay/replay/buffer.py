"""The base class of all replay buffers: a store of fragments, and a sampler that draws the ids of items in it."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..engine import Final, Fragment
from .batches import Batch, Sequences, gather_sequences, gather_transitions
from .indices import IndexSampler
from .store import Store

__all__ = ["Buffer", "check_fraction"]


class Buffer:
    """Stores, saves and samples. A subclass adds the public sampling methods and the priorities.

    The store and the sampler are made when the first fragment is committed, since this fragment determines the shapes.
    """

    def __init__(self, capacity: int, sequences: bool, device: torch.device | str | None) -> None:
        _check_count("capacity", capacity)
        self.capacity = int(capacity)
        self._holds_sequences = sequences
        self._device = None if device is None else torch.device(device)
        self._store_and_sampler: tuple[Store, IndexSampler] | None = None

    def __len__(self) -> int:
        """The number of environment steps held, including those that are not valid."""
        if self._store_and_sampler is None:
            return 0
        store, _ = self._store_and_sampler
        return len(store) * store.n_steps * store.n_envs

    @torch.no_grad()
    def commit(self, fragment: Fragment) -> None:
        """Copy a fragment into the buffer, over the oldest one if the buffer is full.

        The first fragment determines T, B, structure, shapes and dtypes, and whether there is ``final``. All memory is
        allocated at this commit, except that the memory of ``final`` grows with the number of episodes that end. A
        buffer of transitions keeps states, outcomes and true last observations. A buffer of sequences keeps the whole
        fragment; remove parts that are not needed before the commit, such as with ``fragment._replace(actor=())``. The
        host does not wait for the device, unless the fragment and the buffer are on different devices.

        Parameters
        ----------
        fragment : Fragment
            On any device. The buffer keeps no reference to its tensors.

        Raises
        ------
        ValueError
            The fragment is larger than the capacity, or differs from the first fragment in T, B, structure, shapes,
            dtypes or the presence of ``final``. The buffer is unchanged.
        """
        if not self._holds_sequences:
            fragment = _strip_for_transitions(fragment)
        store, sampler = self._store_and_sampler or self._with_sampler(
            Store.like(fragment, self.capacity, self._device)
        )
        store.check(fragment)
        store.commit(fragment)
        valid = fragment.env.valid.to(store.device)
        sampler.append(valid.any(dim=0) if self._holds_sequences else valid.flatten())
        self._store_and_sampler = store, sampler

    def state_dict(self) -> dict[str, Any]:
        """Return the buffer's state, for ``torch.save``.

        The large tensors share memory with the buffer, like the state of a torch module. Save or copy them before the
        next commit. ``torch.load(..., weights_only=True)`` reads the file back; if observations, actions or actor info
        are named tuples, their classes must be allowed by ``torch.serialization.add_safe_globals``.
        """
        parts = None if self._store_and_sampler is None else [part.state_dict() for part in self._store_and_sampler]
        return {"made_with": self._arguments(), "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by a copy of another buffer's, made with the same arguments; ``device`` may differ.

        With the same generator state, both buffers then return the same samples.

        Raises
        ------
        ValueError
            The other buffer was made with other arguments. This buffer is unchanged.
        """
        if state["made_with"] != self._arguments():
            raise ValueError(
                f"The buffer must be made with the arguments of the one that is loaded, {state['made_with']}; it was "
                f"made with {self._arguments()}."
            )
        if state["parts"] is None:
            self._store_and_sampler = None
            return
        store, sampler = self._with_sampler(Store.restored(state["parts"][0], self._device))
        sampler.load_state_dict(state["parts"][1])
        self._store_and_sampler = store, sampler

    def _arguments(self) -> dict[str, Any]:
        """Return the class and the arguments that must be equal for a buffer to load the state of another."""
        return {"kind": type(self).__name__, "capacity": self.capacity, "sequences": self._holds_sequences}

    def _with_sampler(self, store: Store) -> tuple[Store, IndexSampler]:
        """Return a store together with a new, empty sampler for its items."""
        n_items = store.n_envs if self._holds_sequences else store.n_steps * store.n_envs
        return store, IndexSampler(store.n_fragments, n_items, store.device)

    def _sample_transitions(
        self, n: int, beta: float, generator: torch.Generator | None, n_steps: int, gamma: float
    ) -> Batch:
        """Draw ``n`` transitions over at most ``n_steps`` steps, with importance weights."""
        if self._holds_sequences:
            raise RuntimeError("This is a buffer of sequences: call `sample_sequences`, or make it `sequences=False`.")
        _check_count("n_steps", n_steps)
        check_fraction("gamma", gamma)
        store, ids, weight = self._draw(n, beta, generator)
        return gather_transitions(store, ids, weight, n_steps=n_steps, gamma=gamma)

    def _sample_sequences(self, n: int, beta: float, generator: torch.Generator | None) -> Sequences:
        """Draw ``n`` columns, with importance weights."""
        if not self._holds_sequences:
            raise RuntimeError("This is a buffer of transitions: call `sample`, or make it `sequences=True`.")
        return gather_sequences(*self._draw(n, beta, generator))

    def _draw(self, n: int, beta: float, generator: torch.Generator | None) -> tuple[Store, Tensor, Tensor]:
        """Draw ids, with importance weights ``(N P(i))^-beta`` divided by their maximum (``N`` cancels out).

        Return the store, the ids, and the weights: float32 ``(n,)``.
        """
        _check_count("n", n)
        check_fraction("beta", beta)
        if self._store_and_sampler is None:
            raise RuntimeError("There is nothing to sample: the buffer is empty; `commit` a fragment first.")
        store, sampler = self._store_and_sampler
        ids, priorities = sampler.draw(n, generator)
        weight = (priorities.min() / priorities).pow(beta).masked_fill(priorities == 0, 0)
        return store, ids, weight.float()


def _strip_for_transitions(fragment: Fragment) -> Fragment:
    """Return a fragment without actor info, environment info and recurrent state, which transitions do not use."""
    env = fragment.env._replace(info={})
    if isinstance(env.final, Final):
        env = env._replace(final=env.final._replace(actor=()))
    return fragment._replace(actor=(), env=env, hx=())


def _check_count(name: str, x: Any) -> None:
    """Raise unless ``x`` is a whole number of at least 1."""
    if not isinstance(x, Integral):
        raise TypeError(f"`{name}` must be a whole number, got {x!r}.")
    if x < 1:
        raise ValueError(f"`{name}` must be at least 1, got {x}.")


def check_fraction(name: str, x: float) -> None:
    """Raise unless ``x`` is a number in [0, 1]."""
    if not isinstance(x, Real):
        raise TypeError(f"`{name}` must be a number, got {x!r}.")
    if not 0 <= x <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {x}.")
