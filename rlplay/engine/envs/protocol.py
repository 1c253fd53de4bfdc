"""The protocol of environments: what a stepper needs of a list of environments or of a vector environment.

To support a new kind of environment, write a class with these attributes and methods, and let
:func:`rlplay.engine.envs.make.make_turns` and :func:`~rlplay.engine.envs.make.make_environments` construct it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...nested import Nested
from .rows import Episode, OutcomeRow, StateRow

__all__ = ["Environments"]


class Environments(Protocol):
    """``B`` environments that are stepped together and write into rows.

    The constructor takes a vector environment that has been reset, or makes single environments where needed and resets
    each of them exactly once with its seed. It checks spaces and first observations, and keeps copies of the first
    observations for :meth:`begin`. If the constructor raises, it has closed what it made.

    While an environment is reset or stepped, :class:`~rlplay.engine.concurrency.progress.Progress` names that
    environment and the method, so that an error or a timeout can be attributed. All methods are called by one thread.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        Shape and dtype of one observation, in the containers that the first observation came in, and of one action.
    spaces : tuple
        The observation space and the action space of one environment.
    instances : list
        The environments themselves, or the vector environment.
    episodes : list of Episode
        The episodes that ended, in order. The stepper takes the list away and puts an empty one in its place.
    steps_in_background : bool
        Whether :meth:`start` lets the environments begin a step that they make by themselves.
    """

    obs: Nested
    act: Nested
    spaces: tuple[Any, Any]
    instances: list[Any]
    episodes: list[Episode]
    steps_in_background: bool

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def begin(self, row: StateRow) -> None:
        """Write row 0 of the first fragment: the first observations, ``fin`` True, all else zero. Called once."""

    def release(self) -> None:
        """Resume the environments that ``sticky`` has stopped. Called before the first step of each fragment."""

    def start(self, then: StateRow) -> None:
        """Start the next step, with the actions in ``then.act``. Called only where ``steps_in_background``."""

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then.act`` and write the result of the transition.

        If the step has been started, wait for its end. Actions that are passed to an environment must be copies: the
        row is overwritten later.

        Parameters
        ----------
        now : StateRow
            Row ``t``, complete. Only read.
        then : StateRow
            Row ``t + 1``. ``act`` holds the actions; ``fin`` is all False. ``stepno``, ``obs``, ``rew`` and ``fin`` are
            to be written, and ``act`` where no action was carried out (it repeats that of ``now``).
        outcome : OutcomeRow
            Transition ``t``, with the default values already in it: not terminated, not truncated, valid, all info
            entries absent. Only what differs needs to be written.
        last : StateRow, optional
            Where to write the true last observations (``last.obs``) of the episodes that ended in this transition.
            The columns of other environments are left as they are. None: the last observations are not needed.
        sticky : bool
            Whether an environment whose episode has ended is stopped until :meth:`release`. Until then its rows repeat
            the first row of the next episode, and its transitions are not valid.

        Returns
        -------
        list of int
            The columns of the environments whose episode ended in this transition, ascending.

        Raises
        ------
        ValueError
            An environment returned something that does not fit its spaces.
        """

    def save_state(self, *, whole: bool) -> list[dict[str, Any]]:
        """Return the state of each of the ``instances`` and of its episodes, between two fragments.

        Dicts of numbers, strings and bytes. Unless ``whole`` the environments themselves are left out.

        Raises
        ------
        TypeError
            Something in an environment cannot be saved.
        """

    def load_state(self, saved: Sequence[dict[str, Any]]) -> None:
        """Put the environments and their episodes into states that :meth:`save_state` returned with ``whole``.

        Raises
        ------
        ValueError
            They are states of other environments.
        """

    def own(self, envs: list[Any]) -> None:
        """Close these of the ``instances`` at :meth:`close`, too."""

    def render(self) -> None:
        """Call ``render`` of each environment."""

    def close(self) -> list[str]:
        """Close the environments that this object made, each once; return one sentence for each that failed.

        Instances that the user passed in stay open.
        """
