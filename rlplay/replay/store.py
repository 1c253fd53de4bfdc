"""The memory of a replay buffer: a ring of fragments, and a ring of the true last observations that belong to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import nested
from ..dtypes import as_movable, move
from ..engine import Final, Fragment, Outcome, State
from ..nested import Nested

__all__ = ["FinalRing", "Store"]


class FinalRing:
    """A ring of rows: the true last observations of the stored fragments, and the actor's info for them.

    The number of these rows differs between fragments. The ring doubles its size when the rows of a new fragment would
    not fit, and never shrinks. Row number ``k``, counted from the first row ever appended, is at index ``k % R``.

    Parameters
    ----------
    rows : nested tensors, ``(R, ...)``
        The memory of the ring. The ring writes to it. It has no tensors if observations have none.
    n_fragments : int
        The number of fragments whose rows are kept.
    device : torch.device
        The device of the rows and of their numbers.
    n_rows_of : sequence of int
        The number of rows of each fragment whose rows are in ``rows`` already, oldest first.
    n_appended : int
        The number of rows that were ever appended.
    """

    def __init__(
        self,
        rows: Nested,
        n_fragments: int,
        device: torch.device,
        n_rows_of: Sequence[int] = (),
        n_appended: int = 0,
    ) -> None:
        self.rows, self._device = rows, device
        self._n_rows_of = deque(n_rows_of, maxlen=n_fragments)
        self._n_held, self._n_appended = sum(n_rows_of), n_appended

    def append(self, rows: Nested, k: int) -> Tensor:
        """Copy the ``k`` rows of the next fragment; evict those of the oldest one if ``n_fragments`` are held.

        Returns
        -------
        int64 tensor, ``(k,)``
            The numbers of the new rows.
        """
        if len(self._n_rows_of) == self._n_rows_of.maxlen:
            self._n_held -= self._n_rows_of[0]
        self._make_room(self._n_held, k)
        self._n_rows_of.append(k)
        self._n_held += k
        numbers = self._n_appended + torch.arange(k, device=self._device)
        if k:
            for leaf, new in zip(nested.leaves(self.rows), nested.leaves(rows), strict=True):
                as_movable(leaf)[numbers % len(leaf)] = as_movable(new.to(leaf.device))
        self._n_appended += k
        return numbers

    def __getitem__(self, numbers: Tensor) -> Nested:
        """Return copies of the rows with these numbers; arbitrary rows for numbers that are not held, such as -1."""
        return nested.map(partial(move, lambda leaf: leaf.index_select(0, numbers % len(leaf))), self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the ring's state. The tensors share memory with the ring."""
        return {"rows": self.rows, "held": list(self._n_rows_of), "n_rows": self._n_appended}

    @classmethod
    def restored(cls, state: dict[str, Any], n_fragments: int, device: torch.device) -> FinalRing:
        """Make a ring from the result of :meth:`state_dict`, with copies of the tensors."""
        rows = nested.map(lambda leaf: leaf.to(device, copy=True), state["rows"])
        return cls(rows, n_fragments, device, state["held"], int(state["n_rows"]))

    def _make_room(self, n_kept: int, k: int) -> None:
        """Double the ring until it has room for the newest ``n_kept`` rows and ``k`` more."""

        def grown(leaf: Tensor) -> Tensor:
            size = len(leaf)
            while size < n_kept + k:
                size *= 2
            if size == len(leaf):
                return leaf
            numbers = torch.arange(self._n_appended - n_kept, self._n_appended, device=leaf.device)
            new = leaf.new_zeros(size, *leaf.shape[1:])
            new[numbers % size] = leaf[numbers % len(leaf)]
            return new

        self.rows = nested.map(partial(move, grown), self.rows)


class Store:
    """A ring of the newest ``N`` fragments. Fragment number ``k``, counted from the first commit, is at ``k % N``.

    Parameters
    ----------
    columns : Fragment
        All fragments, stacked, without ``env.final``. Shapes: state and actor ``(N, 1+T, B, ...)``,
        env ``(N, T, B, ...)``, the recurrent state ``(N, L, B, ...)``.
    final_numbers : int64 tensor, ``(N, T, B)``
        For each transition that ended an episode, the number of its true last observation in ``finals``; -1 for all
        other transitions.
    finals : FinalRing, or None
        The true last observations and the actor's info for them, ``(obs, actor)``; None if fragments have no ``final``.
    n_committed : int
        The number of fragments that were ever committed.
    """

    def __init__(
        self, columns: Fragment, final_numbers: Tensor, finals: FinalRing | None, n_committed: int = 0
    ) -> None:
        self.columns, self.final_numbers, self.finals = columns, final_numbers, finals
        self.n_fragments, self.n_steps, self.n_envs = final_numbers.shape
        self.device = final_numbers.device
        self._n_committed = n_committed

    @classmethod
    def like(cls, fragment: Fragment, capacity: int, device: torch.device | None) -> Store:
        """Make an empty store for fragments like this one.

        Parameters
        ----------
        fragment : Fragment
            All other fragments must have the same T, B, structure, shapes and dtypes.
        capacity : int
            In environment steps. There is room for ``capacity // (T * B)`` fragments.
        device : torch.device, or None
            The device of the store; None: the fragment's.

        Raises
        ------
        ValueError
            The fragment is larger than the capacity, or its leaves do not fit one another.
        """
        _check_leading(fragment)
        n_steps, n_envs = fragment.env.valid.shape
        n_fragments = capacity // (n_steps * n_envs)
        if n_fragments < 1:
            raise ValueError(
                f"`capacity={capacity}` steps has no room for a fragment of T x B = {n_steps} x {n_envs} steps: at "
                f"least {n_steps * n_envs} are needed."
            )
        device = fragment.state.fin.device if device is None else device

        def ring(leaf: Tensor) -> Tensor:
            return torch.zeros((n_fragments, *leaf.shape), dtype=leaf.dtype, device=device)

        def one_row(leaf: Tensor) -> Tensor:
            return torch.zeros((1, *leaf.shape[1:]), dtype=leaf.dtype, device=device)

        final = fragment.env.final
        has_final = isinstance(final, Final)
        finals = FinalRing(nested.map(one_row, (final.obs, final.actor)), n_fragments, device) if has_final else None
        final_numbers = torch.full((n_fragments, n_steps, n_envs), -1, device=device)
        return cls(nested.map(ring, _without_final(fragment)), final_numbers, finals)

    def __len__(self) -> int:
        """The number of fragments held."""
        return min(self._n_committed, self.n_fragments)

    def check(self, fragment: Fragment) -> None:
        """Raise if a fragment differs from the stored fragments in structure, shapes or dtypes.

        Raises
        ------
        ValueError
            The structure, or the shape or dtype of a leaf, differs; ``final`` is present in the fragment and not in
            the store, or the other way round; or it is on the CPU and names a transition that the fragment lacks.
        """
        final = fragment.env.final
        if isinstance(final, Final) != (self.finals is not None):
            has, had = ("has", "had none") if isinstance(final, Final) else ("has no", "had it")
            raise ValueError(
                f"The fragment {has} `env.final`, the first one {had}: it cannot change within a buffer. Keep to one "
                f"`final=` in `rollout`, or strip it: `fragment._replace(env=fragment.env._replace(final=()))`."
            )
        if isinstance(final, Final) and len({len(leaf) for leaf in nested.leaves(final)}) != 1:
            raise ValueError("The leaves of `fragment.env.final` must all have the same first dimension (K,).")
        final_rows = (final.obs, final.actor) if isinstance(final, Final) else ()
        stored_rows = self.finals.rows if self.finals is not None else ()
        _check_alike("fragment", _without_final(fragment), self.columns)
        _check_alike("(final.obs, final.actor)", final_rows, stored_rows, dropped=1)
        if isinstance(final, Final) and final.t.device.type == "cpu":  # the host would wait for another device
            _check_inside(final, self.n_steps, self.n_envs)

    def commit(self, fragment: Fragment) -> None:
        """Copy a fragment, which :meth:`check` has accepted, over the oldest one."""
        position = self._n_committed % self.n_fragments
        for column, leaf in zip(nested.leaves(self.columns), nested.leaves(_without_final(fragment)), strict=True):
            as_movable(column[position]).copy_(as_movable(leaf))
        final_numbers, final = self.final_numbers[position].fill_(-1), fragment.env.final
        if self.finals is not None:
            numbers = self.finals.append((final.obs, final.actor), len(final.t))
            final_numbers.index_put_((final.t.to(self.device), final.b.to(self.device)), numbers)
        self._n_committed += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the store's state, with rlplay's named tuples as dicts. The tensors share memory with the store."""
        state, actor, env, hx = self.columns
        outcome = {name: column for name, column in env._asdict().items() if name != "final"}
        return {
            "columns": {"state": state._asdict(), "actor": actor, "env": outcome, "hx": hx},
            "last": self.final_numbers,
            "lasts": None if self.finals is None else self.finals.state_dict(),
            "n_committed": self._n_committed,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device | None) -> Store:
        """Make a store from the result of :meth:`state_dict`, copied to a device (None: the device of the tensors)."""
        device = state["last"].device if device is None else device
        saved = state["columns"]
        columns = Fragment(State(**saved["state"]), saved["actor"], Outcome(**saved["env"], final=()), saved["hx"])
        columns, numbers = nested.map(lambda leaf: leaf.to(device, copy=True), (columns, state["last"]))
        finals = None if state["lasts"] is None else FinalRing.restored(state["lasts"], len(numbers), device)
        return cls(columns, numbers, finals, int(state["n_committed"]))


def _without_final(fragment: Fragment) -> Fragment:
    return fragment._replace(env=fragment.env._replace(final=()))


def _check_leading(fragment: Fragment) -> None:
    """Raise if the leaves of a fragment differ in the number of steps or environments."""
    state, actor, env, hx = fragment
    n_steps, n_envs = env.valid.shape
    trees = (
        ("fragment.state", state, 0, (n_steps + 1, n_envs)),
        ("fragment.actor", actor, 0, (n_steps + 1, n_envs)),
        ("fragment.env", env._replace(final=()), 0, (n_steps, n_envs)),
        ("fragment.hx", hx, 1, (n_envs,)),
    )
    for root, tree, start, expected in trees:
        for name, leaf in zip(nested.names(tree, root), nested.leaves(tree), strict=True):
            got = tuple(leaf.shape[start : start + len(expected)])
            if got != expected:
                raise ValueError(
                    f"`{name}` must have {expected} from dimension {start} on, as `fragment.env.valid` is (T, B) = "
                    f"{(n_steps, n_envs)}; its shape is {tuple(leaf.shape)}."
                )
    if isinstance(env.final, Final):
        _check_alike("fragment.env.final.obs", env.final.obs, nested.map(lambda leaf: leaf[0], state.obs), dropped=1)


def _check_inside(final: Final, n_steps: int, n_envs: int) -> None:
    """Raise if an episode ended outside of a fragment's ``n_steps`` steps and ``n_envs`` environments."""
    outside = (final.t < 0) | (final.t >= n_steps) | (final.b < 0) | (final.b >= n_envs)
    if outside.any():
        t, b = final.t[outside][0].item(), final.b[outside][0].item()
        raise ValueError(
            f"`fragment.env.final` must be of the fragment's T x B = {n_steps} x {n_envs} transitions, got t = {t}, "
            f"b = {b}. If you cut the fragment, keep those rows of `final` that are inside, and shift `t` and `b`."
        )


def _check_alike(root: str, tree: Nested, columns: Nested, dropped: int = 0) -> None:
    """Raise unless structure, shapes and dtypes of a tree are those of one element of ``columns``.

    An element is what remains of a leaf of ``columns`` without its first dimension. The first ``dropped`` dimensions of
    the leaves of ``tree`` are not compared.
    """
    (leaves, structure), (stored, expected_structure) = nested.flatten(tree), nested.flatten(columns)
    if structure != expected_structure:
        raise ValueError(
            f"All fragments of a buffer must have one structure: `{root}` must be {expected_structure}, got "
            f"{structure}."
        )
    for k, (leaf, column) in enumerate(zip(leaves, stored, strict=True)):
        got, expected = leaf.shape[dropped:], column.shape[1:]
        if got != expected or leaf.dtype != column.dtype:
            raise ValueError(
                f"All fragments of a buffer must have the same T, B, shapes and dtypes: "
                f"`{nested.names(tree, root)[k]}` must be {column.dtype} {tuple(expected)}, got {leaf.dtype} "
                f"{tuple(got)}."
            )
