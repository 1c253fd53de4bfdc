"""Measures how a thread should wait for a device beside a learner that launches small operations.

    python -m tests.bench.waits

The thread by turns waits for some time and holds the interpreter lock for as long, as a collector does that waits for
actions and then steps environments in Python. It waits in C without the lock and with a busy core, as CUDA does for an
event (here hashing stands in for it); or by a loop in Python that looks again and again, each time by a call that
releases the lock for a microsecond; or asleep. Prints medians: the learner's operations, as a part of those it makes
alone in the time in which the thread does not hold the lock, and how much longer than alone the wait takes.
"""

from __future__ import annotations

import argparse
import hashlib
import select
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep

import torch

SENT = bytes(600_000)


def hash_in_c() -> None:
    """Keep the core busy without the interpreter lock."""
    hashlib.sha256(SENT).digest()


def poll(seconds: float) -> None:
    """Look again and again whether the time is over."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        select.select((), (), (), 0)


def hold_lock(seconds: float) -> None:
    """Compute in Python."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that some work takes."""
    started = perf_counter()
    work()
    return perf_counter() - started


def measure(wait: Callable[[], None] | None, turn: float, n_turns: int) -> tuple[float, float]:
    """Return the learner's operations per second, and the seconds of a wait. Without a wait the learner is alone."""
    done, n_done, x, waits = threading.Event(), 0, torch.zeros(64, 64), [0.0]

    def learn() -> None:
        nonlocal n_done
        while not done.is_set():
            for _ in range(20):
                torch.add(x, 1.0)
            n_done += 20

    learner = threading.Thread(target=learn)
    learner.start()
    sleep(0.02)
    before, started = n_done, perf_counter()
    if wait is None:
        sleep(2 * turn * n_turns)
    else:
        waits = []
        for _ in range(n_turns):
            waits.append(timed(wait))
            hold_lock(turn)
    rate = (n_done - before) / (perf_counter() - started)
    done.set()
    learner.join()
    return rate, median(waits)


def main() -> None:
    """Measure by turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    turn = min(timed(hash_in_c) for _ in range(100))
    ways: dict[str, Callable[[], None]] = {
        "in C, busy": hash_in_c,
        "a loop in Python": lambda: poll(turn),
        "asleep": lambda: sleep(turn),
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        alone, _ = measure(None, turn, args.turns)
        for way, wait in ways.items():
            rate, waited = measure(wait, turn, args.turns)
            found[way].append((rate / (alone / 2), waited - turn))
    print(f"Turns of {1e6 * turn:.0f} us.\n\n| wait | learner's operations | longer by, us |\n| --- | --- | --- |")
    for way, values in found.items():
        rates, longer = zip(*values, strict=True)
        print(f"| {way} | {median(rates):.2f} ({min(rates):.2f}..{max(rates):.2f}) | {1e6 * median(longer):.0f} |")


if __name__ == "__main__":
    main()
