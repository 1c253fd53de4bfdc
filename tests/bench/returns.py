"""Measure :mod:`rlplay.algo.returns` and TorchRL's estimators, on the CPU with one thread; print a Markdown table.

Not a test: pytest does not collect this file. It needs TorchRL; install it in a separate virtual environment:

    python3 -m venv /tmp/bench && /tmp/bench/bin/pip install torch==2.13.0 torchrl==0.14.1
    /tmp/bench/bin/pip install -e . && /tmp/bench/bin/python tests/bench/returns.py

Each library gets its own layout (rlplay ``T x B``, TorchRL ``B x T x 1``) and does the same work: GAE with the value
targets, V-trace with the advantages, which rlplay computes by one more call. First the script checks that the results
agree in float64. Then all candidates for a row of the table are called alternately in one process, so that other load
of the machine affects all of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchrl.objectives.value import functional as theirs

from rlplay.algo.returns import deltas, gae, returns, vtrace

GAMMA, LAMBDA = 0.99, 0.95
AGREE = 1e-9

Candidates = dict[str, Callable[[], tuple[Tensor, ...]]]


def candidates(T: int, B: int, dtype: torch.dtype) -> dict[str, Candidates]:
    """Return the calls that are compared, with their arguments bound; the first of each group is rlplay's."""
    torch.manual_seed(0)
    rew, val, log_pi, log_mu = torch.randn(4, T, B, dtype=dtype)
    log_pi, log_mu, end = 0.3 * log_pi, 0.3 * log_mu, torch.randn(B, dtype=dtype)
    fin = torch.rand(T, B) < 0.02

    def other(x: Tensor) -> Tensor:
        return x.mT.contiguous().unsqueeze(-1)

    value, later, done = other(val), other(torch.cat([val[1:], end[None]])), other(fin)
    args = (later, other(rew), done, done)  # no episode ends by a time limit: done equals terminated
    pi, mu, lam = other(log_pi), other(log_mu), {"gamma": GAMMA, "lmbda": LAMBDA}

    def our_gae() -> tuple[Tensor, ...]:
        advantage = gae(rew, fin, val, gamma=GAMMA, C=LAMBDA, bootstrap=end)
        return advantage, advantage + val

    def our_vtrace() -> tuple[Tensor, ...]:
        how = {"gamma": GAMMA, "bootstrap": end, "r_bar": 1.0}
        omega = log_pi - log_mu
        v = vtrace(rew, fin, val, omega, c_bar=1.0, **how)
        return deltas(rew + v - val, fin, v, omega=omega, **how), v

    def plain(name: str, **how: float) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (getattr(theirs, name)(next_state_value=args[0], reward=args[1], done=done, **how),)

    return {
        "gae": {
            "gae": our_gae,
            "generalized_advantage_estimate": lambda: theirs.generalized_advantage_estimate(
                GAMMA, LAMBDA, value, *args
            ),
            "vec_generalized_advantage_estimate": lambda: theirs.vec_generalized_advantage_estimate(
                GAMMA, LAMBDA, value, *args
            ),
            "vec_... (gamma a tensor: no fast path)": lambda: theirs.vec_generalized_advantage_estimate(
                torch.full_like(value, GAMMA), LAMBDA, value, *args
            ),
        },
        "vtrace": {
            "vtrace, deltas": our_vtrace,
            "vtrace_advantage_estimate": lambda: theirs.vtrace_advantage_estimate(GAMMA, pi, mu, value, *args),
        },
        "returns": {
            "returns": lambda: (returns(rew, fin, gamma=GAMMA, bootstrap=end),),
            "td1_return_estimate": plain("td1_return_estimate", gamma=GAMMA),
            "vec_td1_return_estimate": plain("vec_td1_return_estimate", gamma=GAMMA),
        },
        "td(lambda)": {
            "gae + val": lambda: our_gae()[1:],
            "td_lambda_return_estimate": plain("td_lambda_return_estimate", **lam),
            "vec_td_lambda_return_estimate": plain("vec_td_lambda_return_estimate", **lam),
        },
    }


def check(T: int, B: int) -> None:
    """Print the largest difference of each of TorchRL's results to rlplay's in float64; exit if it is too large."""
    torch.set_default_dtype(torch.float64)  # TorchRL rounds gamma to the default dtype
    for what, calls in candidates(T, B, torch.float64).items():
        (_, ours), *others = calls.items()
        expected = ours()
        for name, call in others:
            got = [x.squeeze(-1).mT for x in call()]
            apart = max((x - y).abs().max().item() for x, y in zip(expected, got, strict=True))
            print(f"{what}: {name} differs by {apart:.1e} at most")
            if not apart <= AGREE:
                raise SystemExit(f"{what}: {name} differs by {apart}, and may by {AGREE}")
    torch.set_default_dtype(torch.float32)


def measure(calls: Candidates, repeats: int) -> dict[str, list[float]]:
    """Time each call ``repeats`` times, interleaved, in microseconds; two more rounds at the start do not count.

    The order is random in each round, because the state of the caches depends on the call before.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for k in range(-2, repeats):
        for name, call in order.sample(list(calls.items()), len(calls)):
            start = time.perf_counter()
            call()
            took = 1e6 * (time.perf_counter() - start)
            if k >= 0:
                found[name].append(took)
    return found


def main() -> None:
    """Print the agreement, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--T", type=int, default=128)
    parser.add_argument("--B", type=int, nargs="+", default=[8, 256, 4096])
    parser.add_argument("--only", nargs="+", default=["gae", "vtrace", "returns", "td(lambda)"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    check(args.T, 8)
    print("\n| what | T x B | function | median, us | range, us | of TorchRL's fastest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what in args.only:
        for B in args.B:
            found = measure(candidates(args.T, B, torch.float32)[what], args.repeats)
            medians = [statistics.median(times) for times in found.values()]
            for (name, times), median in zip(found.items(), medians, strict=True):
                spread = f"{min(times):.0f} .. {max(times):.0f}"
                ratio = median / min(medians[1:])
                print(f"| {what} | {args.T} x {B} | {name} | {median:.0f} | {spread} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
