"""The public types: what a fragment contains, and what an actor must implement.

This module must not import memory or threads, nor any environment.

Rows and transitions
====================

A *fragment* is ``T`` consecutive steps of ``B`` environments. Its states have ``1 + T`` rows: row ``t`` is the state
that the actor reacts to at time ``t``, and row ``T``, the *look-ahead* row, is the state after the last step. Row ``T``
of one fragment is row 0 of the next, so no transition is lost between them. A row contains ::

    stepno[t]   obs[t]   act[t] = a(t-1)   rew[t] = r(t)   fin[t]

the observation, together with the action and the reward that *led* to it. The table shows one environment. Its episode
ends (by termination) between row 1 and row 2; ``x`` is the old episode, ``y`` the new one::

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
begun: ``obs`` is its first observation, while ``act`` and ``rew`` are the action and the reward that *ended* the
previous episode. Learning needs them for the transition 1 -> 2. The actor should ignore them where ``fin`` is True.

The last observation of the old episode, ``x7``, has no row. With ``final=True`` it is ``env.final.obs[0]``, with
``env.final.t[0] == 1``. If a time limit has cut the episode (``truncated`` and not ``terminated``), the return should
be bootstrapped from the value of this observation.

What the look-ahead row is for
------------------------------

Learning from ``T`` transitions needs the value of the state after the last one, so the actor reacts to row ``T`` too.
This reaction is *virtual*: its action is not carried out, it does not advance the recurrent state, and its random
numbers come from a separate generator. The same state is row 0 of the next fragment. There the actor, perhaps with new
weights, reacts to it again, and this action is carried out. So actions do not depend on where fragments are cut.

Sticky fragments
----------------

With ``sticky=True`` an environment whose episode ended is not stepped again before the next fragment. So each column
has at most one reset, followed only by padding, and an RNN can be run over the whole sequence at once. The same
environment as above::

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

Transitions that are not ``valid`` were not carried out. Leave them out of every loss; they are neither in ``final``
nor in ``episodes()``. The recurrent state is reset at *every* row with ``fin``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..dtypes import move
from ..nested import Nested
from .envs.rows import Episode

__all__ = ["At", "BaseActorModule", "Episode", "Final", "Fragment", "Outcome", "State"]

At = int | slice | Tensor
"""A choice of environments: an index, a slice, or a bool mask of shape ``(B,)``."""

_KINDS = "dtype", "device"


class State(NamedTuple):
    """The states that the actor reacts to: ``(t, x_t, a_{t-1}, r_t, d_t)``. Leaves have shape ``(1+T, B, ...)``.

    The module's docstring has the time-index tables. In the very first row of a feed ``fin`` is all True, and
    ``stepno``, ``act`` and ``rew`` are zero, unless the feed goes on from a saved state.
    """

    stepno: Nested
    """int64: environment steps since the current episode began."""
    obs: Nested
    """Nested: the current observation, in the space's own dtype (uint8 stays uint8). Values of Discrete and
    MultiDiscrete are int64 and counted from 0, whatever the dtype and the ``start`` of the space."""
    act: Nested
    """Nested: the action that led to this observation, in the space's own dtype. Discrete and MultiDiscrete are as in
    ``obs``; the environment gets ``start + act``."""
    rew: Nested
    """float32: the reward that was received with this observation."""
    fin: Nested
    """bool: an episode has just begun in this row. ``act`` and ``rew`` are those that ended the previous episode."""


class Final(NamedTuple):
    """The last states of the ``K >= 0`` episodes that ended in a fragment, ordered by ``(t, b)``.

    The actor reacts to each of them virtually. It is given ``stepno + 1``, the last observation, the action and the
    reward that led to it, ``fin`` False, and the recurrent state before the reset.
    """

    t: Nested
    """int64 ``(K,)``: the transition ``t -> t+1`` that ended the episode."""
    b: Nested
    """int64 ``(K,)``: the index of the environment."""
    obs: Nested
    """Nested ``(K, ...)``: the true last observation, which is not in ``state.obs``."""
    actor: Nested
    """Nested ``(K, ...)``: the info of the actor's virtual reaction to the last state."""


class Outcome(NamedTuple):
    """The outcomes of the transitions ``t -> t+1``. Leaves have shape ``(T, B, ...)``."""

    terminated: Nested
    """bool: the environment ended the episode. The value after the transition is zero."""
    truncated: Nested
    """bool: the episode was cut from outside, as by a time limit. Its last state still has a value."""
    valid: Nested
    """bool: the transition was carried out. Leave the others out of every loss."""
    info: dict[str, Any]
    """The entries of the environments' info that were requested by ``info=``, by name; empty by default."""
    final: Nested
    """A :class:`Final` with ``final=True``, else ``()``."""


class Fragment(NamedTuple):
    """``T`` consecutive steps of ``B`` environments: nested tensors, all on the feed's ``device``.

    A fragment belongs to its receiver: the engine never writes to it again, and it stays valid after the feed is
    closed. Keeping it or slicing it is safe. On CUDA it can be used at once on the stream that was current when it was
    received. The module's docstring has the time-index tables.
    """

    state: State
    """``(1+T, B, ...)``; row ``T`` is the look-ahead row, and row 0 of the next fragment."""
    actor: Nested
    """``(1+T, B, ...)``: the info that the actor returned; row ``T`` is that of its virtual reaction."""
    env: Outcome
    """``(T, B, ...)``: the outcomes of the transitions."""
    hx: Nested
    """``(L, B, ...)``: the recurrent state at row 0. From it the actor's reactions can be computed again, with a reset
    at every row with ``state.fin``."""

    def __repr__(self) -> str:
        """Return a table with the name, shape, dtype and device of each tensor."""
        rows = [
            (name, " x ".join(map(str, getattr(x, "shape", ()))), *(str(getattr(x, key, "")) for key in _KINDS))
            for name, x in zip(nested.names(self, ""), nested.leaves(self), strict=True)
        ]
        lines = [("Fragment", "shape", *_KINDS), *((name.lstrip("."), *rest) for name, *rest in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


class BaseActorModule(torch.nn.Module):
    """A torch module that acts: the base class of all actors.

    Define ``forward``. Override :meth:`reset` only if the recurrent state is to be reset to something other than zero::

        class Actor(BaseActorModule):
            def __init__(self) -> None:
                super().__init__()
                self.policy = torch.nn.Linear(4, 2)

            def forward(self, obs, *, hx=None, **ignored):
                logits = self.policy(obs).log_softmax(dim=-1)
                return sampling.categorical(logits, generator=self.generator), hx, {"logits": logits}

    Shapes are time-major: inputs are ``n_seq x B x ...``, with ``n_seq`` 1 during collection, and the action and the
    info that are returned have the same two leading dimensions.

    The engine acts with a *behaviour copy* of this module, never with the module itself. Parameters, buffers and the
    train/eval mode are copied again for each fragment. Changes that the copy makes to its own buffers are lost at the
    next snapshot. Plain attributes of modules (numbers, strings, booleans, None) are copied again when the learner has
    changed them since its previous snapshot, so a schedule, such as an epsilon, may be a plain attribute; what the copy
    changes itself stays until then. (With ``compile=True`` keep a schedule in a buffer: a step has the values of plain
    attributes compiled into it.) Everything else is copied once, when the feed is made. The copy reaches nothing of
    this module: functions, hooks and weak references that refer to it refer to the copy there, or are refused.
    """

    generator: torch.Generator | None = None
    """The random generator to sample actions with. On the user's own actor it is ``None``: torch's global generator.
    On the behaviour copy it is one of the feed's, so that the feed is reproducible. See :mod:`rlplay.sampling`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise TypeError if ``reset`` or ``step`` of a subclass cannot be called as the engine calls them."""
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
        """Return the recurrent state, reset to zero for some environments.

        Parameters
        ----------
        hx : nested tensors, ``(L, B, ...)``
            The recurrent state. The batch is the *second* dimension, as in ``torch.nn.LSTM`` and ``GRU``. It must not
            be changed in place.
        at : int, slice, or bool tensor of shape ``(B,)``
            The environments to reset. An override that accepts a mask is called once for all of them. One that does
            not is called for one environment at a time; the engine detects this, and warns.

        Returns
        -------
        nested tensors
            The new recurrent state, of the same structure.
        """

        def zeroed(x: Tensor) -> Tensor:
            if isinstance(at, Tensor):
                mask = at.view(1, -1, *(1,) * (x.ndim - 2))
                cleared: Tensor = move(lambda x: x.masked_fill(mask, 0), x)
                return cleared
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
            The leaves of a :class:`State`, on the actor's device. They must not be changed in place. Attributes may
            keep them, also in lists, tuples, dicts and deques: the engine copies those before it uses their memory
            again. Clone an input that anything else is to keep, such as another object or a NumPy array over it.
        hx : nested tensors, ``(L, B, ...)``, or None
            The recurrent state, already reset where ``fin[0]``. ``None`` asks for a fresh one.
        virtual : bool
            Whether the action will not be carried out. The ``hx`` that is returned is then ignored, unless ``hx`` is
            None.

        Returns
        -------
        act : nested tensors, ``(n_seq, B, ...)``
            The actions, of the action space's structure, shape and kind.
        hx : nested tensors, ``(L, B, ...)``
            The next recurrent state, of one form, in memory that no later step writes to; ``()`` or ``None`` if none.
        info : nested tensors, ``(n_seq, B, ...)``
            What is to be recorded in ``fragment.actor``, such as logits and values.
        """
        got: tuple[Nested, Nested, Nested] = self(obs, act=act, rew=rew, fin=fin, stepno=stepno, hx=hx, virtual=virtual)
        return got

    def _forward_by_step(
        self, obs: Nested, *, act: Nested, rew: Tensor, fin: Tensor, stepno: Tensor, hx: Nested, virtual: bool
    ) -> tuple[Nested, Nested, Nested]:
        """Call :meth:`step`. An actor that overrides ``step`` alone can so be called as a module, also in a wrapper."""
        if type(self).step is BaseActorModule.step:
            raise NotImplementedError(
                f"{type(self).__qualname__} has neither a `forward` nor a `step` of its own: define one of them."
            )
        return self.step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)

    forward: Callable[..., Any] = _forward_by_step


def _kinds(signature: inspect.Signature) -> list[tuple[str, inspect._ParameterKind]]:
    return [(p.name, p.kind) for p in signature.parameters.values()]


def _bare(signature: inspect.Signature) -> str:
    """Return the signature without annotations and defaults, for messages."""
    empty = inspect.Parameter.empty
    bare = [p.replace(annotation=empty, default=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=empty))
