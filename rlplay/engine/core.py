"""The nouns of the engine and their laws: what a fragment holds, and what an actor promises.

This page knows nothing of memory, threads or environments.

The law of the rows
===================

A *fragment* is ``T`` consecutive steps of ``B`` environments. States have one row more than there are steps: row ``t``
is what the actor saw at time ``t``, and row ``T``, the *look-ahead* row, is what the last step led to. Row ``T`` of one
fragment is row 0 of the next, so nothing is lost between them. In a row stand together ::

    stepno[t]   obs[t]   act[t] = a(t-1)   rew[t] = r(t)   fin[t]

the observation and the action and reward that *led* to it. One column, with an episode that ends (by termination) on
the way from row 1 to row 2; ``x`` is the old episode, ``y`` the new one::

    row                 0       1       2       3       4 = T
    -----------------------------------------------------------------
    state.stepno        5       6       0       1       2
    state.obs           x5      x6      y0      y1      y2
    state.act           a4      a5      a6      b0      b1
    state.rew           r5      r6      r7      q1      q2
    state.fin           -       -       True    -       -
    -----------------------------------------------------------------
    actor (reaction)    to x5   to x6   to y0   to y1   to y2, virtual
    carried out         a5      a6      b0      b1      nothing
    -----------------------------------------------------------------
    transition          0 -> 1  1 -> 2  2 -> 3  3 -> 4
    env.terminated      -       True    -       -
    env.truncated       -       -       -       -
    env.valid           True    True    True    True

Transition ``t`` goes from row ``t`` to row ``t + 1``: its action is ``state.act[t + 1]``, its reward
``state.rew[t + 1]``, and ``state.fin[t + 1] == env.terminated[t] | env.truncated[t]``. At row 2 an episode has just
begun: ``obs`` is its first observation, while ``act`` and ``rew`` still hold what *ended* the previous one. That is
right for learning (the transition 1 -> 2 needs them) and to be ignored by the actor, which is told so by ``fin``.

The last observation of the old episode, ``x7``, has no row. It is not lost: with ``final=True`` it is
``env.final.obs[0]``, with ``env.final.t[0] == 1``. When an episode was cut by a time limit rather than ended by the
environment (``truncated`` and not ``terminated``), its value is what the return should be bootstrapped from.

What the look-ahead row is for
------------------------------

Learning from ``T`` transitions needs the value of the state after the last one, so the actor reacts to row ``T`` too.
That reaction is *virtual*: its action is not carried out, it does not advance the recurrent state, and its random
numbers come from a generator of their own. The same state is met again as row 0 of the next fragment, where the actor,
by then perhaps with new weights, reacts to it in earnest. So where fragments are cut changes no action.

Sticky fragments
----------------

With ``sticky=True`` an environment whose episode ended is not stepped again before the next fragment, so that there is
at most one reset in a column, followed by nothing but padding, and a whole-sequence RNN can be run over it. The same
column again::

    row                 0       1       2       3       4 = T
    -----------------------------------------------------------------
    state.stepno        5       6       0       0       0
    state.obs           x5      x6      y0      y0      y0
    state.act           a4      a5      a6      a6      a6
    state.rew           r5      r6      r7      0       0
    state.fin           -       -       True    True    True
    -----------------------------------------------------------------
    transition          0 -> 1  1 -> 2  2 -> 3  3 -> 4
    env.terminated      -       True    True    True
    env.truncated       -       -       -       -
    env.valid           True    True    -       -

Transitions that are not ``valid`` never happened. Leave them out of every loss; they are neither in ``final`` nor in
``episodes()``. The recurrent state is reset at *every* row with ``fin``.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..nested import Nested
from .envs.rows import Episode

__all__ = ["At", "BaseActorModule", "Episode", "Final", "Fragment", "Outcome", "State"]

At = int | slice | Tensor
"""Which environments: an index, a slice, or a bool mask of shape ``(B,)``."""


class State(NamedTuple):
    """What the actor reacts to at time ``t``: ``(t, x_t, a_{t-1}, r_t, d_t)``. Leaves have shape ``(1+T, B, ...)``.

    The module's docstring has the time-index tables. In the very first row of a feed ``fin`` is all True, and
    ``stepno``, ``act`` and ``rew`` are zero.
    """

    stepno: Nested
    """int64: environment steps since the current episode began."""
    obs: Nested
    """Nested, in the observation space's own dtypes: the current observation (uint8 stays uint8)."""
    act: Nested
    """Nested, in the action space's own dtypes (Discrete: int64): the last action that was carried out."""
    rew: Nested
    """float32: the last reward that was received."""
    fin: Nested
    """bool: an episode has just begun here; ``act`` and ``rew`` are those that ended the previous one."""


class Final(NamedTuple):
    """The ``K >= 0`` episodes that ended in a fragment, ordered by ``(t, b)``: what their last states were.

    The actor's reaction is virtual. For it the actor was given ``stepno + 1``, the last observation, the action and
    the reward that led to it, ``fin`` False, and the recurrent state before the reset.
    """

    t: Nested
    """int64 ``(K,)``: the transition ``t -> t+1`` that ended the episode."""
    b: Nested
    """int64 ``(K,)``: the environment."""
    obs: Nested
    """Nested ``(K, ...)``: the true last observation, which ``state.obs`` does not have."""
    actor: Nested
    """Nested ``(K, ...)``: the info that the actor returned in its reaction to it."""


class Outcome(NamedTuple):
    """What became of the transitions ``t -> t+1``. Leaves have shape ``(T, B, ...)``."""

    terminated: Nested
    """bool: the environment ended the episode; there is no value beyond it."""
    truncated: Nested
    """bool: the episode was cut from outside (a time limit); its last state still had a value."""
    valid: Nested
    """bool: the transition was really carried out. Everything that learns leaves the others out."""
    info: dict[str, Any]
    """The entries asked for by ``info=``, by name; empty unless asked for."""
    final: Nested
    """A :class:`Final` if asked for by ``final=True``, else ``()``."""


class Fragment(NamedTuple):
    """``T`` consecutive steps of ``B`` environments: only tensors (nested), all on the feed's ``device``.

    A fragment belongs to whoever received it: the engine never writes to it again, it outlives its feed, and keeping
    it, slicing it or putting it into a list is safe. On CUDA it may be used at once on the stream that was current
    when it was received. The module's docstring has the time-index tables.
    """

    state: State
    """``(1+T, B, ...)``; row ``T`` is the look-ahead row, and row 0 of the next fragment."""
    actor: Nested
    """``(1+T, B, ...)``: the info that the actor returned; row ``T`` is its virtual reaction."""
    env: Outcome
    """``(T, B, ...)``: the transitions' outcomes."""
    hx: Nested
    """The recurrent state at row 0 (leaves have ``B`` as their second dimension), from which the actor's reactions
    can be computed again, with resets wherever ``state.fin``."""


class BaseActorModule(torch.nn.Module):
    """A torch module that acts: the only thing the engine asks of a policy.

    Write ``forward`` and leave the rest alone, unless the recurrent state is to be reset to something other than zero::

        class Actor(BaseActorModule):
            def __init__(self) -> None:
                super().__init__()
                self.policy = torch.nn.Linear(4, 2)

            def forward(self, obs, *, hx=None, **ignored):
                logits = self.policy(obs).log_softmax(dim=-1)
                return sampling.categorical(logits, generator=self.generator), hx, {"logits": logits}

    Shapes are time-major: inputs are ``n_seq x B x ...``, with ``n_seq`` 1 during collection, and the action and the
    info that are returned have the same two leading dimensions.

    The engine never acts with this very module but with a *behaviour copy* of it. Parameters, buffers and the
    train/eval mode flow into the copy between fragments; everything else is copied once, when the feed is made. So
    keep schedules, such as an epsilon, in buffers. What the copy does to its own buffers is discarded at the next
    snapshot.
    """

    generator: torch.Generator | None = None
    """The random generator to sample actions with: ``None`` (torch's global one) on the user's own actor, while the
    behaviour copy has its own, which is what makes a feed reproducible. See :mod:`rlplay.sampling`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass whose ``reset`` or ``step`` the engine could not call."""
        super().__init_subclass__(**kwargs)
        for name in ("reset", "step"):
            expected = inspect.signature(getattr(BaseActorModule, name))
            got = inspect.signature(getattr(cls, name))
            if _kinds(got) != _kinds(expected):
                raise TypeError(
                    f"{cls.__qualname__}.{name}{_bare(got)} does not have the arguments that the engine calls it with: "
                    f"expected `def {name}{_bare(expected)}`, with these very names, order and kinds (mind the `/` "
                    f"and the `*`; defaults and annotations are free)."
                )

    def reset(self, hx: Nested, at: At) -> Nested:
        """Return the recurrent state with that of some environments reset, here to zero.

        Parameters
        ----------
        hx : nested tensors, ``(L, B, ...)``
            The recurrent state. The batch is the *second* dimension, as in ``torch.nn.LSTM`` and ``GRU``. It must not
            be changed in place.
        at : int, slice, or bool tensor of shape ``(B,)``
            The environments to reset. An override that honours the mask resets them all in one call; one that does
            not is called for one environment at a time (the engine finds out, and says so).

        Returns
        -------
        nested tensors
            The new recurrent state, of the same structure.
        """

        def zeroed(x: Tensor) -> Tensor:
            if isinstance(at, Tensor):
                return x.masked_fill(at.view(1, -1, *(1,) * (x.ndim - 2)), 0)
            x = x.clone()
            x[:, at] = 0
            return x

        return nested.map(zeroed, hx)

    def step(
        self, stepno: Tensor, obs: Nested, act: Nested, rew: Tensor, fin: Tensor, /, *, hx: Nested, virtual: bool
    ) -> tuple[Nested, Nested, Nested]:
        """React to a state, or to ``n_seq`` consecutive ones. The default calls the module itself, by keywords.

        Parameters
        ----------
        stepno, obs, act, rew, fin : (nested) tensors, ``(n_seq, B, ...)``
            The leaves of a :class:`State`, on the actor's device. They must not be changed in place.
        hx : nested tensors, ``(L, B, ...)``, or None
            The recurrent state, already reset where ``fin[0]``. ``None`` asks for a fresh one.
        virtual : bool
            Whether this reaction is only looked at: the action will not be carried out, ``hx`` does not advance.

        Returns
        -------
        act : nested tensors, ``(n_seq, B, ...)``
            The actions, of the action space's structure, shape and kind.
        hx : nested tensors, ``(L, B, ...)``
            The next recurrent state; ``()`` or ``None`` for actors that have none.
        info : nested tensors, ``(n_seq, B, ...)``
            Whatever is to be recorded in ``fragment.actor``: logits, values.
        """
        answer: tuple[Nested, Nested, Nested] = self(
            obs, act=act, rew=rew, fin=fin, stepno=stepno, hx=hx, virtual=virtual
        )
        return answer


def _kinds(signature: inspect.Signature) -> list[tuple[str, inspect._ParameterKind]]:
    return [(p.name, p.kind) for p in signature.parameters.values()]


def _bare(signature: inspect.Signature) -> str:
    """The signature without annotations and defaults, for messages."""
    empty = inspect.Parameter.empty
    bare = [p.replace(annotation=empty, default=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=empty))
