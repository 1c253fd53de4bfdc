"""The true last observations of episodes: a ring that grows, since nobody knows how many there will be."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .. import nested
from ..engine import Final, Fragment, Outcome, State
from ..nested import Nested

__all__ = ["Lasts", "Store"]


class Lasts:
    """Rows in the order in which they came, as many as belong to the fragments that are held.

    The ``k``-th row that ever came has the number ``k``, and is at its number modulo the ring's size. The ring's size
    doubles when the rows would not fit; it never shrinks.

    Parameters
    ----------
    rows : nested tensors, ``(R, ...)``
        The ring. It is written to.
    n_fragments : int
        How many fragments are held.
    """

    def __init__(self, rows: Nested, n_fragments: int) -> None:
        self.rows = rows
        self._held: deque[int] = deque(maxlen=n_fragments)  # how many rows each fragment has
        self._n_rows = 0  # how many ever came

    def append(self, rows: Nested, k: int) -> Tensor:
        """Copy the ``k`` rows of the next fragment; let go those of the oldest if there would be too many fragments.

        Returns
        -------
        int64 tensor, ``(k,)``
            Their numbers.
        """
        full = len(self._held) == self._held.maxlen
        self._make_room(sum(self._held) - (self._held[0] if full else 0), k)
        self._held.append(k)
        ring = nested.leaves(self.rows)
        numbers = self._n_rows + torch.arange(k, device=ring[0].device)
        for leaf, new in zip(ring, nested.leaves(rows), strict=True):
            leaf[numbers % len(leaf)] = new.to(leaf.device)
        self._n_rows += k
        return numbers

    def __getitem__(self, numbers: Tensor) -> Nested:
        """Return new tensors with the rows of these numbers; those of a number that is not there mean nothing."""
        return nested.map(lambda leaf: leaf.index_select(0, numbers % len(leaf)), self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return everything; the tensors are shared."""
        return {"rows": self.rows, "held": list(self._held), "n_rows": self._n_rows}

    @classmethod
    def restored(cls, state: dict[str, Any], n_fragments: int, device: torch.device) -> Lasts:
        """Make one of what :meth:`state_dict` returned."""
        lasts = cls(nested.map(lambda leaf: leaf.to(device, copy=True), state["rows"]), n_fragments)
        lasts._held.extend(state["held"])
        lasts._n_rows = int(state["n_rows"])
        return lasts

    def _make_room(self, n_kept: int, k: int) -> None:
        """Double the ring until there is room for ``k`` rows more than the newest ``n_kept``, which stay."""
        size = old = len(nested.leaves(self.rows)[0])
        while size < n_kept + k:
            size *= 2
        if size == old:
            return

        def grown(leaf: Tensor) -> Tensor:
            numbers = torch.arange(self._n_rows - n_kept, self._n_rows, device=leaf.device)
            new = leaf.new_zeros(size, *leaf.shape[1:])
            new[numbers % size] = leaf[numbers % old]
            return new

        self.rows = nested.map(grown, self.rows)


class Store:
    """The newest fragments, copied into columns ``(n_shelves, 1+T, B, ...)``; the oldest are evicted whole.

    Fragment number ``k`` of those ever committed stands on shelf ``k % n_shelves``.

    Parameters
    ----------
    columns : Fragment
        All shelves, with ``env.final`` left out: state and actor ``(n_shelves, 1+T, B, ...)``, env
        ``(n_shelves, T, B, ...)``, the recurrent state ``(n_shelves, L, B, ...)``.
    last : int64 tensor, ``(n_shelves, T, B)``
        The number in ``lasts`` of the true last observation that the transition led to; -1: there is none.
    lasts : Lasts, or None
        The true last observations and the reactions to them, ``(obs, actor)``; None if fragments have no ``final``.
    """

    def __init__(self, columns: Fragment, last: Tensor, lasts: Lasts | None) -> None:
        self.columns, self.last, self.lasts = columns, last, lasts
        self.n_shelves, self.n_steps, self.n_envs = last.shape
        self.device = last.device
        self._n_committed = 0

    @classmethod
    def like(cls, fragment: Fragment, capacity: int, device: torch.device | None) -> Store:
        """Make an empty store for fragments like this one.

        Parameters
        ----------
        fragment : Fragment
            Whose numbers of steps and environments, structure, shapes and dtypes all others must share.
        capacity : int
            In environment steps: there is room for ``capacity // (T * B)`` fragments.
        device : torch.device, or None
            Where; None: where the fragment is.

        Raises
        ------
        ValueError
            The fragment is larger than the capacity, or its leaves do not fit one another.
        """
        _check_leading(fragment)
        n_steps, n_envs = fragment.env.valid.shape
        n_shelves = capacity // (n_steps * n_envs)
        if n_shelves < 1:
            raise ValueError(
                f"`capacity={capacity}` steps has no room for a fragment of T x B = {n_steps} x {n_envs} steps: at "
                f"least {n_steps * n_envs} are needed."
            )
        where = fragment.state.fin.device if device is None else device

        def shelves(leaf: Tensor) -> Tensor:
            return torch.zeros((n_shelves, *leaf.shape), dtype=leaf.dtype, device=where)

        def one(leaf: Tensor) -> Tensor:
            return torch.zeros((1, *leaf.shape[1:]), dtype=leaf.dtype, device=where)

        final = fragment.env.final
        lasts = Lasts(nested.map(one, (final.obs, final.actor)), n_shelves) if isinstance(final, Final) else None
        last = torch.full((n_shelves, n_steps, n_envs), -1, device=where)
        return cls(nested.map(shelves, _without_final(fragment)), last, lasts)

    def __len__(self) -> int:
        """How many fragments there are."""
        return min(self._n_committed, self.n_shelves)

    def check(self, fragment: Fragment) -> None:
        """Refuse a fragment that is not like the others.

        Raises
        ------
        ValueError
            Its structure, or the shape or dtype of a leaf, is another; or it has ``final`` and they have not, or the
            other way round.
        """
        final = fragment.env.final
        if isinstance(final, Final) != (self.lasts is not None):
            has, had = ("has", "had none") if isinstance(final, Final) else ("has no", "had it")
            raise ValueError(
                f"The fragment {has} `env.final`, the first one {had}: it cannot change within a buffer. Keep to one "
                f"`final=` in `rollout`, or strip it: `fragment._replace(env=fragment.env._replace(final=()))`."
            )
        if isinstance(final, Final) and len({len(leaf) for leaf in nested.leaves(final)}) != 1:
            raise ValueError("The leaves of `fragment.env.final` must all have the same first dimension (K,).")
        rows = (final.obs, final.actor) if isinstance(final, Final) else ()
        ring = self.lasts.rows if self.lasts is not None else ()
        _check_alike("fragment", _without_final(fragment), self.columns)
        _check_alike("(final.obs, final.actor)", rows, ring, dropped=1)

    def commit(self, fragment: Fragment) -> None:
        """Copy a fragment, which has passed :meth:`check`, over the oldest one."""
        shelf = self._n_committed % self.n_shelves
        for column, leaf in zip(nested.leaves(self.columns), nested.leaves(_without_final(fragment)), strict=True):
            column[shelf].copy_(leaf)
        last, final = self.last[shelf].fill_(-1), fragment.env.final
        if self.lasts is not None:
            numbers = self.lasts.append((final.obs, final.actor), len(final.t))
            last.index_put_((final.t.to(self.device), final.b.to(self.device)), numbers)
        self._n_committed += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything, our own nouns as plain dicts; the tensors are shared."""
        state, actor, env, hx = self.columns
        outcome = {name: column for name, column in env._asdict().items() if name != "final"}
        return {
            "columns": {"state": state._asdict(), "actor": actor, "env": outcome, "hx": hx},
            "last": self.last,
            "lasts": None if self.lasts is None else self.lasts.state_dict(),
            "n_committed": self._n_committed,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device | None) -> Store:
        """Make a store of what :meth:`state_dict` returned, copied to a device (None: where the tensors are)."""
        where = state["last"].device if device is None else device
        saved = state["columns"]
        columns = Fragment(State(**saved["state"]), saved["actor"], Outcome(**saved["env"], final=()), saved["hx"])
        columns, last = nested.map(lambda leaf: leaf.to(where, copy=True), (columns, state["last"]))
        lasts = None if state["lasts"] is None else Lasts.restored(state["lasts"], len(last), where)
        store = cls(columns, last, lasts)
        store._n_committed = int(state["n_committed"])
        return store


def _without_final(fragment: Fragment) -> Fragment:
    return fragment._replace(env=fragment.env._replace(final=()))


def _check_leading(fragment: Fragment) -> None:
    """Refuse a fragment whose leaves do not agree on the number of steps and environments."""
    state, actor, env, hx = fragment
    n_steps, n_envs = env.valid.shape
    places = (
        ("fragment.state", state, 0, (n_steps + 1, n_envs)),
        ("fragment.actor", actor, 0, (n_steps + 1, n_envs)),
        ("fragment.env", env._replace(final=()), 0, (n_steps, n_envs)),
        ("fragment.hx", hx, 1, (n_envs,)),
    )
    for root, tree, start, expected in places:
        for name, leaf in zip(nested.names(tree, root), nested.leaves(tree), strict=True):
            got = tuple(leaf.shape[start : start + len(expected)])
            if got != expected:
                raise ValueError(
                    f"`{name}` must have {expected} from dimension {start} on, as `fragment.env.valid` is (T, B) = "
                    f"{(n_steps, n_envs)}; its shape is {tuple(leaf.shape)}."
                )
    if isinstance(env.final, Final):
        _check_alike("fragment.env.final.obs", env.final.obs, nested.map(lambda leaf: leaf[0], state.obs), dropped=1)


def _check_alike(root: str, tree: Nested, columns: Nested, dropped: int = 0) -> None:
    """Refuse what is not put together as ``columns`` are, or whose leaves are not like what one row of these holds.

    The first ``dropped`` dimensions of the leaves are not compared.
    """
    if nested.structure(tree) != nested.structure(columns):
        raise ValueError(
            f"All fragments of a buffer must have one structure: `{root}` must be {nested.structure(columns)}, got "
            f"{nested.structure(tree)}."
        )
    for name, leaf, column in zip(nested.names(tree, root), nested.leaves(tree), nested.leaves(columns), strict=True):
        got, expected = tuple(leaf.shape[dropped:]), tuple(column.shape[1:])
        if (got, leaf.dtype) != (expected, column.dtype):
            raise ValueError(
                f"All fragments of a buffer must have the same T, B, shapes and dtypes: `{name}` must be "
                f"{column.dtype} {expected}, got {leaf.dtype} {got}."
            )
