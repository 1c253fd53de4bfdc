"""The base class of all replay buffers: a store of fragments, and a sampler that draws the ids of items in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .. import nested
from ..engine import Final, Fragment
from ..nested import Nested
from .batches import Batch, Sequences, gather_sequences, gather_transitions
from .indices import IndexSampler
from .store import Store

__all__ = ["Buffer", "check_count", "check_fraction"]


class Buffer:
    """Stores, saves and samples. A subclass adds the public sampling methods and the priorities.

    The store and the sampler are made when the first fragment is committed, since this fragment determines the shapes.
    """

    def __init__(
        self, capacity: int, sequences: bool, device: torch.device | str | None, keep: str | Sequence[str]
    ) -> None:
        check_count("capacity", capacity)
        self.capacity = int(capacity)
        self._holds_sequences = sequences
        self._keep = tuple(sorted([keep] if isinstance(keep, str) else keep))
        if not set(self._keep) <= {"actor", "info"}:
            raise ValueError(f"`keep` must be 'actor', 'info' or both, got {keep!r}.")
        self._device = None if device is None else torch.device(device)
        self._store_and_sampler: tuple[Store, IndexSampler] | None = None

    def __len__(self) -> int:
        """The number of environment steps held, including those that are not valid."""
        if self._store_and_sampler is None:
            return 0
        store, _ = self._store_and_sampler
        return len(store) * store.n_steps * store.n_envs

    @torch.inference_mode(False)  # what is kept must not be an inference tensor
    @torch.no_grad()
    def commit(self, fragment: Fragment, fields: Mapping[str, Nested] | None = None) -> None:
        """Copy a fragment into the buffer, over the oldest one if the buffer is full.

        The first fragment determines T, B, structure, shapes and dtypes, and whether there is ``final``. All memory is
        allocated at this commit, except that the memory of ``final`` grows with the number of episodes that end. A
        buffer of transitions keeps states, outcomes and true last observations, and what ``keep`` asks for. A buffer of
        sequences keeps the whole fragment; remove parts that are not needed before the commit, such as with
        ``fragment._replace(actor=())``. The host does not wait for the device, unless the fragment and the buffer are
        on different devices.

        Parameters
        ----------
        fragment : Fragment
            On any device. The buffer keeps no reference to its tensors.
        fields : mapping of nested tensors, ``(T, B, ...)``, optional
            The user's own data of each transition by name, such as an intrinsic reward: any structure and dtypes, the
            same at each commit. Samples have them beside the environment's info: ``batch.info[name]`` or
            ``columns.env.info[name]``.

        Raises
        ------
        TypeError
            ``fields`` is no mapping of tensors.
        ValueError
            A field has the name of an entry of the environment's info. The fragment is larger than the capacity, or
            differs from the first fragment in T, B, structure, shapes, dtypes, the presence of ``final`` or the fields.
            On the CPU: ``final`` names a transition that the fragment lacks. The buffer is unchanged.
        """
        if not self._holds_sequences:
            fragment = _strip_for_transitions(fragment, self._keep)
        if fields:
            fragment = _with_fields(fragment, fields)
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

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by a copy of another buffer's, made with the same arguments; ``device`` may differ.

        With the same generator state, both buffers then return the same samples.

        Raises
        ------
        ValueError
            The other buffer was made with other arguments. This buffer is unchanged.
        """
        made_with = {"keep": [], **state["made_with"]}  # which states of older versions lack
        if made_with != self._arguments():
            raise ValueError(
                f"The buffer must be made with the arguments of the one that is loaded, {made_with}; it was made with "
                f"{self._arguments()}."
            )
        if state["parts"] is None:
            self._store_and_sampler = None
            return
        store, sampler = self._with_sampler(Store.restored(state["parts"][0], self._device))
        sampler.load_state_dict(state["parts"][1])
        self._store_and_sampler = store, sampler

    def _arguments(self) -> dict[str, Any]:
        """Return the class and the arguments that must be equal for a buffer to load the state of another."""
        return {
            "kind": type(self).__name__,
            "capacity": self.capacity,
            "sequences": self._holds_sequences,
            "keep": list(self._keep),
        }

    def _with_sampler(self, store: Store) -> tuple[Store, IndexSampler]:
        """Return a store together with a new, empty sampler for its items."""
        n_items = store.n_envs if self._holds_sequences else store.n_steps * store.n_envs
        return store, IndexSampler(store.n_fragments, n_items, store.device)

    def epoch(
        self, n: int, *, gamma: float, n_steps: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """Return an iterator over all valid transitions, each once, in random order.

        The host waits for the device once, since the number of batches depends on the number of valid transitions.

        Parameters
        ----------
        n : int >= 1
            The number of transitions in a batch. The last batch may be smaller.
        gamma, n_steps, generator
            As for :meth:`Uniform.sample`. All importance weights are 1.

        Raises
        ------
        RuntimeError
            At the call: nothing has been committed, or this is a buffer of sequences. While iterating: there was a
            commit meanwhile.
        """
        self._check_kind(sequences=False)
        check_count("n_steps", n_steps)
        check_fraction("gamma", gamma)
        gather = partial(gather_transitions, n_steps=n_steps, gamma=gamma)
        return (gather(*drawn) for drawn in self._in_random_order(n, generator))

    def epoch_of_sequences(self, n: int, *, generator: torch.Generator | None = None) -> Iterator[Sequences]:
        """Return an iterator over all columns with a valid transition, each once, in random order.

        Parameters
        ----------
        n : int >= 1
            The number of columns in a batch. The last batch may be smaller.
        generator : torch.Generator, optional
            On the buffer's device.

        Raises
        ------
        RuntimeError
            As for :meth:`epoch`, but at the call if this is a buffer of transitions.
        """
        self._check_kind(sequences=True)
        return (gather_sequences(*drawn) for drawn in self._in_random_order(n, generator))

    def _in_random_order(self, n: int, generator: torch.Generator | None) -> Iterator[tuple[Store, Tensor, Tensor]]:
        """Return an iterator over the store, ids and weights of batches that hold each valid item once."""
        check_count("n", n)
        store, sampler = self._contents()
        ids = sampler.all_ids()
        ids = ids[torch.randperm(len(ids), generator=generator, device=ids.device)]
        n_issued = sampler.n_issued

        def batches() -> Iterator[tuple[Store, Tensor, Tensor]]:
            for chosen in ids.split(n) if len(ids) else ():
                if sampler.n_issued != n_issued or self._contents()[1] is not sampler:
                    raise RuntimeError(
                        "The buffer has changed since this pass over it began: finish the pass before the next "
                        "`commit`, or begin another one."
                    )
                yield store, chosen, torch.ones(len(chosen), dtype=torch.float32, device=ids.device)

        return batches()

    def _sample_transitions(
        self, n: int, beta: float, generator: torch.Generator | None, n_steps: int, gamma: float
    ) -> Batch:
        """Draw ``n`` transitions over at most ``n_steps`` steps, with importance weights."""
        self._check_kind(sequences=False)
        check_count("n_steps", n_steps)
        check_fraction("gamma", gamma)
        store, ids, weight = self._draw(n, beta, generator)
        return gather_transitions(store, ids, weight, n_steps=n_steps, gamma=gamma)

    def _sample_sequences(self, n: int, beta: float, generator: torch.Generator | None) -> Sequences:
        """Draw ``n`` columns, with importance weights."""
        self._check_kind(sequences=True)
        return gather_sequences(*self._draw(n, beta, generator))

    def _draw(self, n: int, beta: float, generator: torch.Generator | None) -> tuple[Store, Tensor, Tensor]:
        """Draw ids, with importance weights ``(N P(i))^-beta`` divided by their maximum (``N`` cancels out).

        Return the store, the ids, and the weights: float32 ``(n,)``.
        """
        check_count("n", n)
        check_fraction("beta", beta)
        store, sampler = self._contents()
        ids, priorities = sampler.draw(n, generator)
        weight = (priorities.min() / priorities).pow(beta).masked_fill(priorities == 0, 0)
        return store, ids, weight.float()

    def _contents(self) -> tuple[Store, IndexSampler]:
        """Return the store and the sampler; raise RuntimeError if nothing has been committed."""
        if self._store_and_sampler is None:
            raise RuntimeError("There is nothing to sample: the buffer is empty; `commit` a fragment first.")
        return self._store_and_sampler

    def _check_kind(self, *, sequences: bool) -> None:
        """Raise RuntimeError if the buffer holds the other kind of items."""
        if self._holds_sequences and not sequences:
            raise RuntimeError("This is a buffer of sequences: call `sample_sequences`, or make it `sequences=False`.")
        if sequences and not self._holds_sequences:
            raise RuntimeError("This is a buffer of transitions: call `sample`, or make it `sequences=True`.")


def _strip_for_transitions(fragment: Fragment, keep: Sequence[str]) -> Fragment:
    """Return a fragment without recurrent state, and without the infos that are not to be kept."""
    env = fragment.env if "info" in keep else fragment.env._replace(info={})
    if isinstance(env.final, Final):
        env = env._replace(final=env.final._replace(actor=()))
    return fragment._replace(actor=fragment.actor if "actor" in keep else (), env=env, hx=())


def _with_fields(fragment: Fragment, fields: Mapping[str, Nested]) -> Fragment:
    """Return a fragment with the user's own fields in its environment info."""
    if not isinstance(fields, Mapping) or not all(isinstance(x, Tensor) for x in nested.leaves(dict(fields))):
        raise TypeError("`fields` must be a mapping from names to (nested) tensors (T, B, ...).")
    taken = sorted(fields.keys() & fragment.env.info.keys())
    if taken:
        raise ValueError(f"The environment's info has entries {taken} already: give the fields other names.")
    return fragment._replace(env=fragment.env._replace(info={**fragment.env.info, **fields}))


def check_count(name: str, x: Any) -> None:
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
