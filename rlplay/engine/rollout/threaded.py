"""Collecting ahead, in a background thread: the flagship."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_feed
from ..feed.feed import Feed
from ..feed.options import Device, Info

__all__ = ["rollout"]


def rollout(
    envs: Any,
    actor: BaseActorModule,
    n_steps: int = 51,
    *,
    sticky: bool = False,
    device: Device = None,
    actor_device: torch.device | str | None = None,
    lag: int = 1,
    groups: int = 1,
    seed: int | None = None,
    final: bool = False,
    info: Info = (),
    compile: bool = False,
    workers: int = 0,
    worker: str = "process",
    timeout: float = 60.0,
    start_timeout: float = 300.0,
) -> Feed:
    """Collect fragments of ``n_steps`` steps in a background thread, ``lag`` of them ahead of the learner.

    The actor's weights are copied whenever a fragment is asked for, and fragment ``k`` is collected with those of ask
    ``max(0, k - lag)``, exactly. Given ``seed``, the stream of fragments does not depend on anybody's timing.

    A thread shares the interpreter lock with the learner: it pays where environments, or the actor's kernels, let go
    of that lock. For small environments written in Python use ``same`` or ``single``; for large ones, ``workers``.

    Parameters
    ----------
    envs : list of environments, list of factories, or one vector environment
        gym (any version) and gymnasium alike. Each is reset once, at the call. Instances are stepped in the collector's
        thread and stay the caller's; factories (callables, optionally taking ``seed``) are called in that thread,
        and what they made is closed with the feed. Of vector environments gym's, gymnasium's, EnvPool's
        and ale-py's are taken (:mod:`rlplay.engine.envs.vector_environment`).
    actor : BaseActorModule
        Copied at the call; parameters, buffers and the train/eval mode are followed from then on.
    n_steps : int
        The length ``T`` of a fragment, in environment steps.
    sticky : bool
        Do not step an environment whose episode ended before the next fragment (lists only).
    device : torch.device, optional
        Where fragments are delivered; by default where the actor's parameters are.
    actor_device : torch.device, optional
        Where the behaviour copy of the actor runs; by default ``device``.
    lag : int
        By how many fragments collection runs ahead. 0 is strictly on-policy, and does not overlap; 1 collects the
        next fragment while the learner trains on this one.
    groups : int
        Split the environments into so many contiguous parts, each inferred as a batch of its own.
    seed : int, optional
        Of everything random here: environments and actions. By default drawn from torch's global generator.
    final : bool
        Deliver the true last observation of each episode, and the actor's reaction to it, in ``env.final``.
    info : tuple of names, or dict of names to dtypes or example arrays
        Entries of the environments' info dicts to deliver in ``env.info``. Names alone are float32 scalars, NaN where
        absent; otherwise NaN, 0 or False is where an entry is absent. A dotted name reaches into nested dicts.
    compile : bool
        Compile the behaviour copy's step where it runs on the host; where it runs on CUDA, capture it.

        On the host what it answers is that of eager steps up to rounding, and bit for bit the same in all engines. With
        small networks, where calling PyTorch costs more than computing, a step of the collector takes little more than
        half the time. It needs a C++ compiler, and several seconds at the call,
        fewer if torch has it in its cache on disk (``start_timeout`` counts them); again when the train/eval mode first
        changes, if the step depends on that. Python runs only while the step is traced: what it looks at, but for
        tensors, parameters, buffers, modes and ``virtual``, must stay as it is. A step that branches on what is in a
        tensor, that changes attributes which are not buffers, or that draws random numbers otherwise than by
        ``sampling.categorical`` or ``multinomial`` runs eagerly, with one RuntimeWarning that says why.

        On CUDA (not run on a GPU yet) a step is captured as a CUDA graph while the first fragment is waited for, and
        replayed with one launch; its answers are those of eager steps, bit for bit. There, too, Python runs but once. A
        step runs eagerly, with such a warning, at the call or with the first fragment, if it has to know on the host
        what is in a tensor, copies from or to the host, changes attributes which are not buffers, or draws from
        anything but ``self.generator``; if ``reset`` does not honour a mask, changes a recurrent state where the mask
        is False, or draws; and in train/eval modes that are neither those at the call, nor train or eval throughout.
        Other threads must not draw from the device's global generator while the first fragment is waited for.
    workers, worker : int, "process" or "thread"
        Have the environments stepped by so many workers, each of which keeps consecutive ones; 0: by the collector's
        thread itself. Processes write straight into the memory that the collector reads; they need factories, which
        travel by value (cloudpickle). A wake-up there and back costs about 50 us, so that they do not pay for
        environments whose steps (of all that a worker keeps, together) take less. Threads pay for environments that let
        go of the interpreter lock. With ``groups`` above 1, a group is inferred while the others step.
    timeout : float
        Seconds without any progress, while a fragment is waited for, after which ``next()`` raises TimeoutError.
    start_timeout : float
        Seconds within which the environments must have been made and reset.

    Returns
    -------
    Feed
        An iterator over :class:`~rlplay.engine.Fragment`, to be closed when done (it is a context manager).

    Raises
    ------
    TypeError, ValueError
        At the call, if anything is not as described: environments whose spaces differ or whose observations do not
        fit, an actor whose answers do not, numbers out of range, a device that is not there.
    """
    for name, seconds in (("timeout", timeout), ("start_timeout", start_timeout)):
        if not isinstance(seconds, Real) or not seconds > 0:
            raise ValueError(
                f"`{name}` must be a positive number of seconds, got {seconds!r}; math.inf waits for ever."
            )
    return open_feed(
        envs, actor, n_steps=n_steps, sticky=sticky, device=device, actor_device=actor_device, lag=lag, groups=groups,
        seed=seed, final=final, info=info, compile=compile, workers=workers, worker=worker,
        background={"timeout": timeout, "start_timeout": start_timeout},
    )  # fmt: skip
