"""The command line: ``python -m rlplay demo``, ``bench`` and ``doctor``.

Imports PyTorch, gym and matplotlib only once a command runs, so that ``--help`` and usage errors are quick.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended, by the convention of shells: 128 + SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process, ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code: 130 if Ctrl-C ended the command; 1 if ``doctor`` found something broken; else 0.

    Raises
    ------
    SystemExit
        With exit code 2 after a usage error.
    """
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        options = vars(build_parser().parse_args(given))
        run, parser = options.pop("run"), options.pop("parser")
        code: int = run(parser, options, shlex.join(["python", "-m", "rlplay", *given]))
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m rlplay", description="Reinforcement learning where you write the loop."
    )
    from . import __version__

    parser.add_argument("--version", action="version", version=f"rlplay {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_bench(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train an actor to balance a pole, in less than a minute",
        description="""Train an actor-critic (A2C) until the environment is solved: until the mean return over 100
            consecutive episodes reaches the environment's own threshold. Ctrl-C ends the training early. Either way,
            a learning curve (PNG) and a summary (JSON) are written; checkpoints, while it trains.""",
        epilog="The exit code is 0, solved or not; 130 after Ctrl-C; 2 if an option is wrong.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.set_defaults(run=_demo, parser=demo)
    option = demo.add_argument
    option("--env", default="CartPole-v1", metavar="ID", help="an environment: flat Box observations, Discrete actions")
    option(
        "--engine",
        default="threaded",
        choices=["same", "threaded", "single", "multi"],
        help="same: collect inside next(); threaded: ahead of the learner, in a background thread; single, multi: in "
        "one process, in two",
    )
    option(
        "--lag",
        default=1,
        type=_at_least(0),
        metavar="N",
        help="number of fragments by which the acting weights are older than the learner's; 0: strictly on-policy",
    )
    option("--device", default="cpu", type=_device, help="device of the actor and the learner: cpu, cuda, cuda:1")
    option("--n-envs", default=8, type=_at_least(1), metavar="N", help="number of environments")
    option("--n-steps", default=64, type=_at_least(1), metavar="N", help="steps of each environment in a fragment")
    option(
        "--total-steps", default=1_000_000, type=_at_least(1), metavar="N",
        help="give up after this many steps of all environments together; the learning rate decreases until then",
    )  # fmt: skip
    option("--seed", default=0, type=_at_least(0), metavar="N", help="of environments, actions and initial weights")
    option("--out", default=Path("rlplay-demo"), type=Path, metavar="FOLDER", help="folder for what is written")
    option(
        "--resume", action="store_true", help="go on from the checkpoint in the folder, bit for bit, if there is one"
    )


def _demo(parser: argparse.ArgumentParser, options: dict[str, Any], command: str) -> int:
    _require_matplotlib(parser)

    from .demo import N_COLLECTORS, ResumeError, demo, make_env

    try:
        make_env(options["env"])
    except ValueError as error:
        parser.error(f"argument --env: {error}")
    if options["engine"] == "multi" and options["n_envs"] % N_COLLECTORS:
        parser.error(
            f"argument --n-envs: multi divides the environments among {N_COLLECTORS} processes, so their number must "
            f"be a multiple of {N_COLLECTORS}, got {options['n_envs']}"
        )
    _make_folder(parser, options["out"])
    try:
        summary = demo(**options)
    except ResumeError as error:
        parser.error(f"argument --resume: {error}")
    return INTERRUPTED if summary["outcome"] == "interrupted" else 0


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check what works on this machine, with a remedy for what does not",
        description="""Check versions, cores, devices, processes, shared memory and environments, and collect one
            fragment with `same`, `threaded`, `single` and `multi`. Each line says ok, warn (something is slow or
            missing) or fail, with a remedy.""",
        epilog="The exit code is 1 if something that rlplay needs is broken, else 0.",
    )
    doctor.set_defaults(run=_doctor, parser=doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")


def _doctor(parser: argparse.ArgumentParser, options: dict[str, Any], command: str) -> int:
    try:
        from .doctor.command import doctor
    except ImportError as error:
        parser.exit(1, f"fail  rlplay cannot be imported: {error}\n      -> pip install {error.name}\n")
    return doctor(as_json=options["json"])


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .benchmark.spec import GRAMMAR, ON_CUDA, WORKS, describe_works, parse_cost, parse_engine

    bench = commands.add_parser(
        "bench",
        help="measure the speed of the engines, as a multiple of two limits of this machine",
        description="Measure steps per second, and their ratio to two limits that are measured in the\n"
        "same run: stepping alone; stepping and the bare forward pass. All engines and\n"
        "limits of one work are measured alternately, in rounds; the results are medians\n"
        "over the rounds. A table is printed; a picture (PNG) and all figures (JSON) are\n"
        "written.",
        epilog="works, and the engines that each is measured with by default (on CUDA also\n"
        + f"{', '.join(ON_CUDA[:2])},\n{', '.join(ON_CUDA[2:])}):\n{describe_works()}\n\n{GRAMMAR}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.set_defaults(run=_bench, parser=bench)
    option = bench.add_argument
    repeatable: Any = {"action": "append"}
    option(
        "--work", **repeatable, choices=WORKS, metavar="WORK", help="what to collect (may be repeated); default: all"
    )
    option(
        "--engine", **repeatable, type=_converter(parse_engine), metavar="SPEC",
        help="which engine, see below (may be repeated); by default those listed for each work",
    )  # fmt: skip
    option(
        "--n-envs", **repeatable, type=_at_least(1), metavar="N",
        help="number of environments (may be repeated); by default 8 and 64, on CUDA also 256",
    )  # fmt: skip
    option(
        "--groups", **repeatable, type=_at_least(1), metavar="N",
        help="number of groups that same and threaded are also measured with (may be repeated)",
    )  # fmt: skip
    option("--n-steps", type=_at_least(1), metavar="N", help="steps in a fragment; by default a number for each work")
    option(
        "--learner-cost", default="0", type=_converter(parse_cost), metavar="COST",
        help="seconds of work in addition to the A2C update of each fragment (default 0); equal: so many that training "
        "takes as long as collection; none: no learner",
    )  # fmt: skip
    option(
        "--cost", default=0.0, type=_at_least(0, float), metavar="MS",
        help="milliseconds of a step of pixels (default 0)",
    )  # fmt: skip
    option(
        "--repeats", type=_at_least(1), metavar="N", help="number of measurements of each engine and limit (default 5)"
    )
    option(
        "--turn", dest="window_seconds", type=_at_least(0, float), metavar="S",
        help="approximate seconds of one measured window (default 0.5)",
    )  # fmt: skip
    option(
        "--threads", default=1, type=_at_least(1), metavar="N",
        help="number of torch threads in each process (default 1)",
    )  # fmt: skip
    option("--device", default="cpu", type=_device, help="of actor and learner: cpu (default), cuda, cuda:1")
    option(
        "--quick",
        action="store_true",
        help="only a check: cartpole and sleep, 8 environments, 3 engines, 2 short measurements, a short table",
    )
    option("--out", default=Path("rlplay-bench"), type=Path, metavar="FOLDER", help="default: rlplay-bench")


def _bench(parser: argparse.ArgumentParser, options: dict[str, Any], command: str) -> int:
    _require_matplotlib(parser)

    from .benchmark.command import bench, nothing_to_measure
    from .benchmark.spec import QUICK_WORKS, WORKS, parse_engine

    default_n_envs = [8, 64, 256] if options["device"].startswith("cuda") else [8, 64]
    quick = options.pop("quick")
    defaults = {
        "work": QUICK_WORKS if quick else list(WORKS),
        "engine": [parse_engine(text) for text in ("same", "threaded", "single")] if quick else None,
        "n_envs": [8] if quick else default_n_envs,
        "repeats": 2 if quick else 5,
        "window_seconds": 0.05 if quick else 0.5,
    }
    options |= {name: value for name, value in defaults.items() if options[name] is None}
    works, engines, n_envs = (options.pop(name) for name in ("work", "engine", "n_envs"))
    if obstacle := nothing_to_measure(works):
        parser.error(f"argument --work: {obstacle}")
    _make_folder(parser, options["out"])
    engines = engines and _without_repeats(engines)
    groups = _without_repeats(options.pop("groups") or [])
    bench(_without_repeats(works), engines, _without_repeats(n_envs), groups, **options, brief=quick, command=command)
    return 0


def _without_repeats(values: Sequence[Any]) -> list[Any]:
    """Remove repeated values; keep the order of the first occurrences."""
    return list(dict.fromkeys(values))


def _require_matplotlib(parser: argparse.ArgumentParser) -> None:
    """Exit with a usage error if matplotlib is missing."""
    from . import plotting

    try:
        plotting.require()
    except ImportError as error:
        parser.error(str(error))


def _make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Create the folder of ``--out``; exit with a usage error if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        parser.error(f"argument --out: no file can be written into the folder {str(folder)!r}: {error.strerror}")


def _converter(parse: Callable[[str], Any]) -> Any:
    """Return a converter for argparse that shows the message of the ValueError that ``parse`` raises."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _at_least(least: int, kind: type[int] | type[float] = int) -> Any:
    """Return a converter for argparse to a finite number of at least ``least``."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise ValueError(f"must be {'an integer' if kind is int else 'a number'}, got {text!r}") from None
        if not least <= number < float("inf"):
            raise ValueError(f"must be at least {least}, got {text}")
        return number

    return _converter(parse)


def _device(text: str) -> str:
    """Check that the device exists."""
    from .engine.memory.cuda import parse_device

    try:
        return str(parse_device(text, "--device"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
