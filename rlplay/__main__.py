"""The command line: ``python -m rlplay demo``, ``python -m rlplay doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, as shells have it: 128 + SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the command line.

    Returns
    -------
    int
        The exit code: 0, or 130 if Ctrl-C ended it. (A usage error exits with 2.)
    """
    try:
        options = vars(build_parser().parse_args(arguments))
        run, parser = options.pop("run"), options.pop("parser")
        code: int = run(parser, options)
    except KeyboardInterrupt:  # there was nothing to keep yet
        return INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options. The heavy imports wait until a command runs."""
    parser = argparse.ArgumentParser(
        prog="python -m rlplay", description="Reinforcement learning where you write the loop."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="learn to balance a pole, in less than a minute",
        description="""Train an actor-critic (A2C) until the environment is solved: until the mean return over 100
            consecutive episodes reaches the environment's own threshold. Ctrl-C ends the training early. Either way,
            a learning curve (PNG) and a summary (JSON) are written.""",
        epilog="The exit code is 0, solved or not; 130 after Ctrl-C; 2 if an option is wrong.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.set_defaults(run=_demo, parser=demo)
    option = demo.add_argument
    option(
        "--env", default="CartPole-v1", metavar="ID", help="a gym environment: flat Box observations, Discrete actions"
    )
    option(
        "--engine",
        default="threaded",
        choices=["same", "threaded"],
        help="same: collect when asked; threaded: ahead of the learner, in a background thread",
    )
    option(
        "--lag",
        default=1,
        type=_at_least(0),
        metavar="N",
        help="by how many fragments the acting weights are behind; 0: strictly on-policy",
    )
    option("--device", default="cpu", type=_device, help="where to act and to learn: cpu, cuda, cuda:1")
    option("--n-envs", default=8, type=_at_least(1), metavar="N", help="environments side by side")
    option("--n-steps", default=64, type=_at_least(1), metavar="N", help="steps of each environment in a fragment")
    option(
        "--total-steps",
        default=1_000_000,
        type=_at_least(1),
        metavar="N",
        help="give up after so many steps, of all environments together; the learning rate falls until then",
    )
    option(
        "--seed",
        default=0,
        type=_at_least(0),
        metavar="N",
        help="of the environments, the actions and the initial weights",
    )
    option(
        "--out",
        default=Path("rlplay-demo"),
        type=Path,
        metavar="FOLDER",
        help="where to write the learning curve and the summary",
    )


def _demo(parser: argparse.ArgumentParser, options: dict[str, Any]) -> int:
    from . import plotting

    try:
        plotting.require()
    except ImportError as error:
        parser.error(str(error))

    from .demo import demo, make_envs

    try:
        make_envs(options["env"], 1)
    except ValueError as error:
        parser.error(f"argument --env: {error}")
    try:
        options["out"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    summary = demo(**options)
    return INTERRUPTED if summary["outcome"] == "interrupted" else 0


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="see what of rlplay works on this machine, and what to do about the rest",
        description="""Look at versions, cores, devices, processes, shared memory and environments, and try every engine
            for a moment. Each line says ok, warn (something is slow, or not there) or fail, with a remedy.""",
        epilog="The exit code is 1 if something that rlplay needs is broken, else 0.",
    )
    doctor.set_defaults(run=_doctor, parser=doctor)
    doctor.add_argument("--json", action="store_true", help="print it for a program to read")


def _doctor(parser: argparse.ArgumentParser, options: dict[str, Any]) -> int:
    try:
        from .doctor import doctor
    except ImportError as error:
        parser.exit(1, f"fail  rlplay cannot be imported: {error}\n      -> pip install {error.name}\n")
    return doctor(as_json=options["json"])


def _at_least(least: int) -> Any:
    """Make a converter to an integer that is no less than ``least``, for argparse."""

    def integer(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return integer


def _device(text: str) -> str:
    """See that there is such a device."""
    from .engine.transfer import parse_device

    try:
        return str(parse_device(text, "--device"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
