"""Shares: the environments that one worker keeps of one group. Must import neither torch nor threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from ..concurrency.exceptions import closed_on_error
from ..concurrency.progress import Progress
from ..envs.environment_list import EnvironmentList
from ..envs.info import Entries
from ..envs.protocol import Environments
from ..envs.rows import Episode
from ..envs.spaces import equal_spaces
from ..envs.vector_environment import VectorEnvironment
from .blocks import TurnRows
from .sent_spaces import SentSpace
from .stepper import Step

__all__ = [
    "Share",
    "ShareStepper",
    "check_equal_spaces",
    "divide_into_turns",
    "close_shares",
    "load_shares",
    "name_environments",
    "open_shares",
    "save_shares",
    "share_vectors",
    "split_into_shares",
]


class Share(NamedTuple):
    """Consecutive environments of one group that one worker steps together, or a vector environment that is made."""

    columns: slice
    """Their numbers among all environments: of the feed, or of all shards."""
    group: int
    """The number of the group."""
    inside: slice
    """Their columns among the environments of the group."""
    sources: Sequence[Any]
    """Environments or factories."""
    seeds: Sequence[int | None]
    vector: VectorEnvironment | None = None
    """The only source, if that is a vector environment; it has been reset."""


class ShareStepper:
    """Steps the environments of a share, in the worker.

    Attributes
    ----------
    environments : Environments
        Made and reset by the constructor.
    """

    def __init__(self, share: Share, entries: Entries, progress: Progress) -> None:
        self._group, self._inside = share.group, share.inside
        self.environments: Environments = _open(share, entries, progress)
        self._progress = progress
        self._slots: list[TurnRows] = []

    def attach(self, slots: Sequence[Sequence[TurnRows]]) -> None:
        """Register the slots, and write this share's part of the very first row."""
        self._slots = [turns[self._group].part(self._inside) for turns in slots]
        self._steps = [rows.steps() for rows in self._slots]
        self.environments.begin(self._slots[0].rows[0])

    def step(self, step: Step) -> tuple[list[int], list[Episode]]:
        """Make a step; return which environments of the group have ended their episode with it, and these episodes."""
        if not step.t:
            self.environments.release()
        self._progress.row = step.t
        self._progress.begin("env.step")
        now, then, outcome = self._steps[step.slot][step.row]
        last = self._slots[step.slot].last if step.final else None
        ended = self.environments.step(now, then, outcome, last, sticky=step.sticky)
        episodes, self.environments.episodes = self.environments.episodes, []
        self._progress.begin("waiting for the next step")
        return [self._inside.start + j for j in ended], episodes


def _open(share: Share, entries: Entries, progress: Progress) -> Environments:
    if share.vector is not None:
        share.vector.report_to(progress)
        return share.vector
    return EnvironmentList(share.sources, share.seeds, entries, progress, first=share.columns.start)


def open_shares(shares: Sequence[Share], entries: Entries, progress: Progress) -> list[ShareStepper]:
    """Make and reset the environments of some shares; if that fails, close those that have been made."""
    steppers: list[ShareStepper] = []
    with closed_on_error(partial(close_shares, steppers)):
        for share in shares:
            steppers.append(ShareStepper(share, entries, progress))
    return steppers


def save_shares(steppers: Sequence[ShareStepper], *, whole: bool) -> list[list[dict[str, Any]]]:
    """Return for each share the state of each of its environments, or of its vector environment."""
    return [stepper.environments.save_state(whole=whole) for stepper in steppers]


def load_shares(steppers: Sequence[ShareStepper], saved: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Put the environments of each share into the states that :func:`save_shares` returned with ``whole``."""
    for stepper, states in zip(steppers, saved, strict=True):
        stepper.environments.load_state(states)


def close_shares(steppers: Sequence[ShareStepper]) -> list[str]:
    """Close the environments of some shares; return what went wrong."""
    return [complaint for stepper in steppers for complaint in stepper.environments.close()]


def share_vectors(turns: Sequence[VectorEnvironment], first_env: int) -> list[list[Share]]:
    """Give each vector environment to a worker of its own; return the shares of each worker."""
    stops = list(accumulate((one.n_envs for one in turns), initial=first_env))
    return [
        [Share(slice(*columns), k, slice(0, one.n_envs), one.instances, [], one)]
        for k, (one, columns) in enumerate(zip(turns, pairwise(stops), strict=True))
    ]


def split_into_shares(
    sources: Sequence[Any], seeds: Sequence[int | None], groups: Sequence[slice], n_workers: int, first_env: int = 0
) -> list[list[Share]]:
    """Split each group among the workers, as evenly as possible; return the shares of each worker.

    The remainder of a group goes to the workers that keep the fewest environments so far. ``first_env`` is the number
    of the first environment.
    """
    shares_by_worker: list[list[Share]] = [[] for _ in range(n_workers)]
    n_kept = [0] * n_workers
    for number, group in enumerate(groups):
        each, remainder = divmod(group.stop - group.start, n_workers)
        emptiest = sorted(range(n_workers), key=n_kept.__getitem__)[:remainder]
        start = group.start
        for worker, shares in enumerate(shares_by_worker):
            if n := each + (worker in emptiest):
                part = slice(start, start + n)
                columns, inside = (slice(start + k, start + n + k) for k in (first_env, -group.start))
                shares.append(Share(columns, number, inside, list(sources[part]), list(seeds[part])))
                n_kept[worker], start = n_kept[worker] + n, part.stop
    return shares_by_worker


def divide_into_turns(
    turns: Sequence[Any], groups: Sequence[slice], first_env: int
) -> tuple[list[slice], list[list[int]]]:
    """Return the environments of each group, and the groups of each turn.

    Parameters
    ----------
    turns : sequence
        The environments of each turn, with ``n_envs`` and ``spaces``.
    groups : sequence of slice
        The environments of each group. If they do not divide the environments of each turn, each turn is a group.
    first_env : int
        The number of the first environment, for messages.

    Raises
    ------
    ValueError
        The environments of different turns have different spaces.
    """
    stops = list(accumulate((one.n_envs for one in turns), initial=0))
    fits = {group.stop for group in groups}.issuperset(stops[1:]) and groups[-1].stop == stops[-1]
    divided = list(groups) if fits else [slice(*pair) for pair in pairwise(stops)]
    members = [[g for g, x in enumerate(divided) if i <= x.start < j] for i, j in pairwise(stops)]
    check_equal_spaces([first_env + start for start in stops[:-1]], [one.spaces for one in turns])
    return divided, members


def check_equal_spaces(firsts: Sequence[int], spaces: Sequence[tuple[Any, Any]]) -> None:
    """Check that environments which were made apart have equal spaces.

    Parameters
    ----------
    firsts : sequence of int
        For each part, the index of its first environment.
    spaces : sequence of tuples
        For each part, the observation space and the action space of its environments: all as they are, or all as
        :class:`~rlplay.engine.stepping.sent_spaces.SentSpace`.

    Raises
    ------
    ValueError
        If the spaces of a part differ from those of the first part.
    """
    for first, others in zip(firsts, spaces, strict=True):
        for name, expected, found in zip(("observation_space", "action_space"), spaces[0], others, strict=True):
            equal = expected.equals if isinstance(expected, SentSpace) else partial(equal_spaces, expected)
            if not equal(found):
                raise ValueError(
                    f"environments of one feed must have equal spaces: environment {first} has the {name} {found}, "
                    f"environment {firsts[0]} has {expected}."
                )


def name_environments(parts: Sequence[slice]) -> str:
    """Return a name for the environments of some parts, such as ``environments 0 to 1, 4``."""
    spans = [f"{p.start}" if p.stop - p.start == 1 else f"{p.start} to {p.stop - 1}" for p in parts]
    single = len(parts) == 1 and parts[0].stop - parts[0].start == 1
    return f"environment{'' if single else 's'} {', '.join(spans)}"
