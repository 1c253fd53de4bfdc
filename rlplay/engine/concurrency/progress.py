"""What the collector is doing at the moment: for error messages, the watchdog and the statistics.

Must not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...contexts import contextmanager
from .channel import Closed
from .clock import COLLECTING, INFERENCE, KINDS, NOTHING, STEPPING, TRANSFER, WAITING, Clock, Log
from .exceptions import add_note

__all__ = ["SharedProgress", "Progress", "note_progress", "vector_number"]

_KIND_OF = {
    "env.step": STEPPING,
    "an upload": TRANSFER,
    "actor.reset": INFERENCE,
    "actor.step": INFERENCE,
    "the hand-over": TRANSFER,
    "its processes": COLLECTING,
    "a pause": WAITING,
    "waiting for the learner": WAITING,
    "waiting for the next step": WAITING,
}

_CODES = {doing: (1 + k, kind) for k, (doing, kind) in enumerate(_KIND_OF.items())}
"""For each activity: the code that :class:`SharedProgress` stores for it, and its kind of work."""


class HasProgress(Protocol):
    """A worker or a collector process."""

    @property
    def name(self) -> str:
        """The name of the worker or collector process in error messages."""

    @property
    def progress(self) -> Progress:
        """The current activity of the worker or collector process."""


class Progress(Clock):
    """The current activity of a collector, a worker or an evaluation, and the seconds that each kind of work took.

    Only the thread that does the work writes ``doing``, ``env``, ``row`` and ``fragment``. Threads that read them see
    each value whole, but not always all values of the same moment; that suffices for messages and for the watchdog.
    """

    __slots__ = ("_after_fragment", "awaited", "doing", "env", "fragment", "parts", "row")

    def __init__(self) -> None:
        super().__init__()
        self.doing = "starting"
        """The activity: ``env.make``, ``env.reset``, ``env.step``, ``env.save``, ``env.restore``, ``actor.step``, or
        one of the engine's own."""
        self.env = -1
        """The index of the environment that is being called; :func:`vector_number` for a whole vector environment."""
        self.row = 0
        """The row of the fragment that the actor reacts to."""
        self.fragment = 0
        """The number of the fragment that is being collected."""
        self.awaited: Sequence[tuple[str, Progress]] = ()
        """Names and progresses of the workers or collector processes that the collector waits for."""
        self.parts: Sequence[tuple[str, Progress]] = ()
        """Names and progresses of all workers or collector processes."""
        self._after_fragment: Callable[[], None] | None = None

    def set_parts(self, parts: Iterable[HasProgress]) -> None:
        """Register all workers or collector processes."""
        self.parts = [(part.name, part.progress) for part in parts]

    def set_awaited(self, awaited: Iterable[HasProgress]) -> None:
        """Say which workers or collector processes are being waited for; after an error, which one has failed."""
        self.awaited = [(one.name, one.progress) for one in awaited]

    @contextmanager
    def during(self, doing: str, env: int) -> Iterator[None]:
        """Set the activity and the environment; at the end of the ``with`` block the activity is what it was before."""
        before, self.doing, self.env = self.doing, doing, env
        try:
            yield
        finally:
            self.doing = before

    def begin(self, doing: str) -> None:
        """Set the activity, and charge the time to its kind of work from now on."""
        self.doing = doing
        kind = _KIND_OF[doing]
        if kind != self.current[0]:
            self.switch_to(kind)

    def finish_fragment(self) -> None:
        """Note that a fragment is complete: call the trace's function, if any, then charge the time to waiting."""
        after_fragment = self._after_fragment  # read once: another thread may end the trace meanwhile
        if after_fragment is not None:
            after_fragment()
        self.begin("waiting for the learner")

    def call_after_fragment(self, function: Callable[[], None] | None) -> None:
        """Set the function that :meth:`finish_fragment` calls while a trace is recorded; None ends that."""
        self._after_fragment = function

    @property
    def traced(self) -> bool:
        """Whether a trace is being recorded."""
        return self._after_fragment is not None

    def spent(self) -> list[float]:
        """Return the seconds spent so far on stepping, inference, transfer and waiting.

        The time in which parts (workers, collector processes) collected is divided in proportion to their own times.
        """
        seconds = self.elapsed()
        of_parts = [sum(part.seconds[k] for _, part in self.parts) for k in (STEPPING, INFERENCE, TRANSFER)]
        for k, spent in enumerate(of_parts):
            seconds[k] += seconds[COLLECTING] * spent / (sum(of_parts) or 1.0)
        return seconds[: 1 + WAITING]

    @property
    def halted(self) -> bool:
        """Whether the work has to stop, or to pause, before its next step."""
        return False

    def state(self) -> tuple[Any, ...]:
        """Return a value that differs from earlier ones as soon as there is progress."""
        return self.doing, self.env, self.row, self.fragment, *(progress.state() for _, progress in self.awaited)

    def __str__(self) -> str:
        if self.awaited:
            return "; ".join(f"{name}: {progress}" for name, progress in self.awaited)
        if self.doing.startswith("env."):
            who = f"environment {self.env}" if self.env >= 0 else _name_vector(self.env)
            return f"{who}, in {self.doing}, at step {self.row} of fragment {self.fragment}"
        return f"the collector, in {self.doing}, at step {self.row} of fragment {self.fragment}"


def vector_number(k: int | None) -> int:
    """Return what :attr:`Progress.env` is for vector environment ``k`` of a list; None: it is not in a list."""
    return -1 if k is None else -2 - k


def _name_vector(number: int) -> str:
    return "the vector environment" if number == -1 else f"vector environment {-2 - number}"


@contextmanager
def note_progress(progress: Progress) -> Iterator[None]:
    """Add a note to every exception raised inside the ``with`` block that says what was being done."""
    try:
        yield
    except Closed:
        raise
    except BaseException as error:
        add_note(error, str(progress))
        raise


_DOING, _ENV, _ROW, _FRAGMENT, _HALTED, _LOGGED, _N_WRITTEN, _N_TRANSFERRED = range(8)
"""Where a :class:`SharedProgress` has its integers: the number of the activity, environment, row and fragment; whether
the process has to pause or to stop, and whether it records a trace; how many spans it has written, and how many bytes
of messages have been transferred."""


def _integer(k: int) -> Any:
    return property(lambda self: self._integers[k], lambda self, x: self._integers.__setitem__(k, x))


class SharedProgress(Progress):
    """A progress in memory that two processes share: one process writes it, the other reads it.

    Spans are sent through a ring buffer in that memory. Pages of it that are never written to take no memory.
    """

    _CAPACITY = 2**15
    """How many spans the ring buffer keeps, beside one that is being written; it should hold those of a fragment."""
    _HEADER = 8 + len(KINDS)
    """Numbers (of 8 bytes) before the ring buffer: eight integers, then the seconds of each kind of work."""
    SIZE = 8 * (_HEADER + 3 * (_CAPACITY + 1))
    """Size in bytes."""

    _ACTIVITIES = (
        *("starting", *_KIND_OF, "env.make", "checking the spaces", "env.reset", "getting ready"),
        *("env.save", "env.restore"),
    )

    __slots__ = ("_integers", "_local_log", "_n_read", "_ring")

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        """Use the first ``SIZE`` bytes of the memory, which must be zeros at first."""
        shared: Any = memory[: self.SIZE]
        self._integers: Any = memoryview(shared).cast("q")
        numbers: Any = memoryview(shared).cast("d")
        self.seconds, self._ring = numbers[8 : self._HEADER], numbers[self._HEADER :]
        self.current = NOTHING, 0.0
        self.awaited = self.parts = ()
        self._after_fragment = None
        self._local_log: Any = None
        self._n_read = 0

    doing = property(
        lambda self: self._ACTIVITIES[self._integers[_DOING]],
        lambda self, doing: self._integers.__setitem__(_DOING, self._ACTIVITIES.index(doing)),
    )
    env, row, fragment = (_integer(k) for k in (_ENV, _ROW, _FRAGMENT))

    def begin(self, doing: str) -> None:
        """Set the activity, and charge the time to its kind of work from now on."""
        self._integers[_DOING], kind = _CODES[doing]
        self.switch_to(kind)

    def note_transfer(self, n_bytes: int) -> None:
        """Count bytes of a message as progress; in the process that waits for the work."""
        self._integers[_N_TRANSFERRED] += n_bytes

    def state(self) -> tuple[Any, ...]:
        """Return a value that differs from earlier ones as soon as there is progress."""
        return *super().state(), self._integers[_N_TRANSFERRED]

    @property
    def halted(self) -> bool:
        """Whether the collector process has to pause or to stop before its next step."""
        return bool(self._integers[_HALTED])

    def halt(self, halted: bool) -> None:
        """Set whether the collector process has to pause or to stop before its next step; in the consumer's process."""
        self._integers[_HALTED] = halted

    @property
    def log(self) -> Log | None:  # type: ignore[override]
        """The object itself while the other process records a trace, else None."""
        return self if self._integers[_LOGGED] else None

    def append(self, span: tuple[int, float, float]) -> None:
        """Write a span into the ring buffer."""
        k = self._integers[_N_WRITTEN]
        at = self._place(k)
        self._ring[at], self._ring[at + 1], self._ring[at + 2] = span
        self._integers[_N_WRITTEN] = k + 1

    def _place(self, k: int) -> int:
        return 3 * (k % (self._CAPACITY + 1))

    def log_to(self, log: Log | None) -> None:
        """Append to ``log``, whenever :meth:`drain` is called, the spans that end in the other process from now on."""
        self._local_log, self._n_read = log, self._integers[_N_WRITTEN]
        self._integers[_LOGGED] = log is not None

    def drain(self) -> int:
        """Move the spans of the other process into the log; return how many were overwritten before they were read."""
        n_written: int = self._integers[_N_WRITTEN]
        first = max(self._n_read, n_written - self._CAPACITY)
        ring, places = self._ring, map(self._place, range(first, n_written))
        spans = [(ring[at], ring[at + 1], ring[at + 2]) for at in places]
        overwritten = self._integers[_N_WRITTEN] - self._CAPACITY  # by now: maybe some of those just read
        intact = min(max(first, overwritten), n_written)
        for kind, start, end in spans[intact - first :]:
            self._local_log.append((int(kind), start, end))
        lost: int = intact - self._n_read
        self._n_read = n_written
        return lost
