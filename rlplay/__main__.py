"""The command line: ``python -m rlplay demo``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status (0, or 130 if it was interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m rlplay", description="Rollouts, with the loop in your hands.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands.add_parser("demo", help="train on an environment of gym, and draw the learning curve"))
    options = vars(parser.parse_args(arguments))
    del options["command"]
    missing = [name for name in ("gym", "matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f'the demo needs {", ".join(missing)}: pip install -e ".[demo]"')

    from .demo import demo

    return 130 if demo(**options)["interrupted"] else 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--env", default="CartPole-v1", help="an environment of gym with discrete actions")
    parser.add_argument("--engine", default="threaded", choices=["same", "threaded"], help="which rollout to use")
    parser.add_argument("--lag", default=1, type=_at_least(0), help="fragments that collection runs ahead")
    parser.add_argument("--device", default="cpu", type=_device, help="where the actor is, such as cuda:0")
    parser.add_argument("--n-envs", default=8, type=_at_least(1), help="environments side by side")
    parser.add_argument("--n-steps", default=64, type=_at_least(1), help="steps in a fragment")
    parser.add_argument("--total-steps", default=1_000_000, type=_at_least(1), help="stop after so many steps")
    parser.add_argument("--seed", default=0, type=_at_least(0), help="of everything random")
    parser.add_argument("--out", default="rlplay-demo", help="the folder for the curve and the summary")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    parse.__name__ = "int"  # argparse names it in its message
    return parse


def _device(text: str) -> str:
    from .engine.transfer import parse_device

    try:
        return str(parse_device(text, "--device"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
