"""The command line: ``python -m rlplay demo``, ``bench`` and ``doctor``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
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
        given = list(sys.argv[1:] if arguments is None else arguments)
        options = vars(build_parser().parse_args(given))
        run, parser = options.pop("run"), options.pop("parser")
        code: int = run(parser, options, shlex.join(["python", "-m", "rlplay", *given]))
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
    _add_bench(commands)
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


def _demo(parser: argparse.ArgumentParser, options: dict[str, Any], command: str) -> int:
    _require_pictures(parser)

    from .demo import demo, make_envs

    try:
        make_envs(options["env"], 1)
    except ValueError as error:
        parser.error(f"argument --env: {error}")
    _make_folder(parser, options["out"])
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


def _doctor(parser: argparse.ArgumentParser, options: dict[str, Any], command: str) -> int:
    try:
        from .doctor import doctor
    except ImportError as error:
        parser.exit(1, f"fail  rlplay cannot be imported: {error}\n      -> pip install {error.name}\n")
    return doctor(as_json=options["json"])


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .benchmark.spec import DEFAULT_ENGINES, GRAMMAR, ON_CUDA, WORKS, parse_cost, parse_engine

    works = "".join(f"  {name:17}{what}\n{'':19}{' '.join(DEFAULT_ENGINES[name])}\n" for name, what in WORKS.items())
    bench = commands.add_parser(
        "bench",
        help="measure how fast the engines are, beside what cannot be beaten on this machine",
        description="Measure steps per second, and their ratio to two limits that are measured in the same run: (a)\n"
        "stepping alone, (b) stepping and the bare forward pass. All of one work take turns; what is told\n"
        "are medians over the turns. A table is printed; a picture (PNG) and all figures (JSON) are written.",
        epilog=f"works, and the engines that they are measured with unless others are chosen (on CUDA with\n"
        f"{' and '.join(ON_CUDA)} as well):\n{works}\n{GRAMMAR}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.set_defaults(run=_bench, parser=bench)
    option = bench.add_argument
    often: Any = {"action": "append"}
    option("--work", **often, choices=WORKS, help="what to collect (again for another one); by default all of them")
    option(
        "--engine", **often, type=_read(parse_engine), metavar="SPEC",
        help="which engine, see below (again for another one); by default some for each work",
    )  # fmt: skip
    option(
        "--n-envs", **often, type=_at_least(1), metavar="N",
        help="environments side by side (again for another number); by default 8 and 64, on CUDA 256 as well",
    )  # fmt: skip
    option("--n-steps", type=_at_least(1), metavar="N", help="steps in a fragment; by default as suits the work")
    option(
        "--learner-cost", default="0", type=_read(parse_cost), metavar="COST",
        help="seconds of work beside the A2C update of each fragment (default 0); equal: so many that training costs "
        "as much as collection; none: no learner",
    )  # fmt: skip
    option("--cost", default=0.0, type=_positive, metavar="MS", help="milliseconds of a step of pixels (default 0)")
    option("--repeats", type=_at_least(1), metavar="N", help="how often each has its turn (default 5)")
    option("--turn", type=_positive, metavar="S", help="seconds that one window of a turn lasts, about (default 0.5)")
    option("--threads", default=1, type=_at_least(1), metavar="N", help="torch's threads, in each process (default 1)")
    option("--device", default="cpu", type=_device, help="where to act and to learn: cpu (default), cuda, cuda:1")
    option("--quick", action="store_true", help="only see that it works: 8 environments, 2 short turns, 2 engines")
    option("--out", default=Path("rlplay-bench"), type=Path, metavar="FOLDER", help="default: rlplay-bench")


def _bench(parser: argparse.ArgumentParser, options: dict[str, Any], command: str) -> int:
    _require_pictures(parser)
    _make_folder(parser, options["out"])

    from .benchmark.command import bench
    from .benchmark.spec import WORKS, parse_engine

    many = [8, 64, 256] if options["device"].startswith("cuda") else [8, 64]
    quick = options.pop("quick")
    defaults = {
        "work": list(WORKS),
        "engine": [parse_engine(text) for text in ("same", "threaded")] if quick else None,
        "n_envs": [8] if quick else many,
        "repeats": 2 if quick else 5,
        "turn": 0.05 if quick else 0.5,
    }
    options |= {name: value for name, value in defaults.items() if options[name] is None}
    works, engines, n_envs = (options.pop(name) for name in ("work", "engine", "n_envs"))
    bench(_once(works), engines and _once(engines), _once(n_envs), **options, command=command)
    return 0


def _once(values: Sequence[Any]) -> list[Any]:
    """Leave out what has been said before."""
    return list(dict.fromkeys(values))


def _require_pictures(parser: argparse.ArgumentParser) -> None:
    from . import plotting

    try:
        plotting.require()
    except ImportError as error:
        parser.error(str(error))


def _make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")


def _read(parse: Callable[[str], Any]) -> Any:
    """Make a converter for argparse, whose message is that of the ValueError."""

    def converter(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converter


def _positive(text: str) -> float:
    """Read a number that is not negative, and finite."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number that is not negative, got {text}")
    return number


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
    from .engine.memory.cuda import parse_device

    try:
        return str(parse_device(text, "--device"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
