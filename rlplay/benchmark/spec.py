"""What the command line of the benchmark accepts: names of works, engines with their options, and the learner's cost.

Imports only the standard library, because the command line reads this module whenever it starts.
"""

from __future__ import annotations

import re
from textwrap import fill
from typing import NamedTuple

__all__ = [
    "DEFAULT_ENGINES",
    "GRAMMAR",
    "ON_CUDA",
    "QUICK_WORKS",
    "WORKS",
    "Engine",
    "describe_works",
    "parse_cost",
    "parse_engine",
]

WORKS = {
    "cartpole": "CartPole-v1 (of gymnasium if installed, else of gym), two MLPs 64-64: cheap environments",
    "pixels": "84x84x4 bytes of noise, Nature CNN: a step takes --cost",
    "breakout": "Atari's Breakout, preprocessed, Nature CNN: needs ale-py, gymnasium and opencv",
    "atari-vector": "ale-py's own vector environment of Breakout, Nature CNN: needs ale-py and gymnasium",
    "busy": "a step holds the interpreter lock for 1 ms of CPU time",
    "sleep": "a step sleeps for 1 ms",
}
"""Name and description of each work."""

QUICK_WORKS = ["cartpole", "sleep"]
"""The works of ``--quick``: one whose steps are cheap, and one whose steps wait."""

DEFAULT_ENGINES = {
    "cartpole": ["same", "threaded", "threaded+workers2", "single", "multi"],
    "pixels": ["same", "threaded", "threaded+workers2+groups2", "single", "multi"],
    "breakout": ["same", "threaded", "threaded+threads2", "threaded+workers2+groups2", "single", "multi"],
    "atari-vector": ["same", "threaded", "same+groups2", "threaded+groups2"],
    "busy": ["same", "threaded", "threaded+workers2", "threaded+workers2+groups2", "single", "multi"],
    "sleep": ["same", "threaded", "threaded+threads8", "threaded+workers8", "threaded+threads8+groups2", "single"],
}
"""Engines that each work is measured with unless the command line names others."""

ON_CUDA = ["same+compile", "threaded+compile", "threaded+groups2+compile", "threaded+groups3+compile"]
"""Additional default engines if the actor is on CUDA: those whose step is captured as a CUDA graph."""

GRAMMAR = """\
engines:
  NAME[+OPTION]...   NAME is same, threaded, single or multi. The options:
  +workersN          threaded: N worker processes step the environments; multi:
                     N collectors (2 unless given)
  +threadsN          threaded: N worker threads step the environments
  +groupsN           same, threaded: N groups of environments, which take turns
                     (atari-vector: N vector environments)
  +compile           any: the actor's step is compiled, or on CUDA captured as a
                     graph
  For example same+compile, threaded+workers2+groups2, multi+workers4.
"""

_OPTIONS = {
    "same": {"groups", "compile"},
    "threaded": {"workers", "threads", "groups", "compile"},
    "single": {"compile"},
    "multi": {"workers", "compile"},
}
"""Options of each engine."""


class Engine(NamedTuple):
    """An engine and its options. Engines that do not have an option keep its default."""

    text: str
    """The engine as written on the command line."""
    name: str
    """Module in ``rlplay.engine.rollout``."""
    workers: int = 0
    """Number of worker processes; for multi the number of collectors."""
    threads: int = 0
    """Number of worker threads."""
    groups: int = 1
    compile: bool = False

    def in_groups(self, n: int) -> Engine | None:
        """Return the same engine with ``n`` groups; None if it has no such option, or has its number of groups."""
        if "groups" not in _OPTIONS[self.name] or self.groups > 1 or n == 1:
            return None
        return self._replace(text=f"{self.text}+groups{n}", groups=n)

    def obstacle(self, n_envs: int, *, vector: bool = False) -> str | None:
        """Return why the engine cannot run with ``n_envs`` environments, as a clause; None if it can.

        ``vector`` says whether they are the parts of vector environments.
        """
        if vector and (self.name in ("single", "multi") or self.workers or self.threads):
            return "its processes and threads step single environments"
        for option in ("workers", "threads", "groups"):
            if getattr(self, option) > n_envs:
                return f"more {option} than the {n_envs} environments"
        if self.name == "multi" and n_envs % self.workers:
            return f"{n_envs} environments cannot be split evenly among {self.workers} collectors"
        return None


def describe_works() -> str:
    """Return a description of each work, and the engines that it is measured with, in lines of 80 columns."""
    texts = []
    for name, description in WORKS.items():
        first, indent = f"  {name:17}", 19 * " "
        texts.append(fill(description, 80, initial_indent=first, subsequent_indent=indent))
        texts.append(fill(" ".join(DEFAULT_ENGINES[name]), 80, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(texts)


def parse_engine(text: str) -> Engine:
    """Read an engine and its options, in the form that :data:`GRAMMAR` describes.

    Raises
    ------
    ValueError
        The text does not have this form, the engine does not have the option, or two options exclude each other.
    """
    name, *options = text.split("+")
    if name not in _OPTIONS:
        raise ValueError(f"there is no engine {name!r}: choose from {', '.join(_OPTIONS)}.")
    values: dict[str, int] = {}
    for option in options:
        match = re.fullmatch(r"(workers|threads|groups)([1-9]\d*)|compile", option)
        if match is None:
            raise ValueError(f"{option!r} in {text!r} is none of +workersN, +threadsN, +groupsN, +compile (N >= 1).")
        key = match[1] or option
        if key not in _OPTIONS[name]:
            raise ValueError(f"{name} has no option +{key}, only {', '.join(sorted(_OPTIONS[name]))}.")
        if key in values:
            raise ValueError(f"+{key} stands twice in {text!r}.")
        values[key] = int(match[2] or 1)
    if {"workers", "threads"} <= values.keys():
        raise ValueError(f"+workers and +threads exclude each other, got {text!r}.")
    if name == "multi":
        values.setdefault("workers", 2)
    compiled = bool(values.pop("compile", 0))
    return Engine(text, name, compile=compiled, **values)


def parse_cost(text: str) -> float | str | None:
    """Read the learner's cost: ``none`` (returned as None), ``equal``, or a number of seconds.

    Raises
    ------
    ValueError
        The text is none of these, or the number is negative or not finite.
    """
    if text == "none":
        return None
    if text == "equal":
        return text
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected none, equal, or a number of seconds that is not negative, got {text!r}.")
    return seconds
