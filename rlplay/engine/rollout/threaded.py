"""Collects ahead in a background thread. The docstring of :func:`rollout` is the reference for all engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_feed
from ..feed.feed import Feed
from ..feed.options import Device, Info, Options

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
    reseed: bool = True,
    shard: tuple[int, int] | None = None,
    state: Mapping[str, Any] | None = None,
    final: bool = False,
    info: Info = (),
    compile: bool = False,
    autoreset: str | None = None,
    workers: int = 0,
    worker: str = "process",
    timeout: float = 60.0,
    start_timeout: float = 300.0,
) -> Feed:
    """Collect fragments of ``n_steps`` steps in a background thread, ``lag`` fragments ahead of the learner.

    Each call of ``next()`` copies the actor's weights: this copy is a snapshot. Fragment ``k`` is collected with
    exactly the snapshot of ask ``max(0, k - lag)``. Given ``seed``, the stream of fragments does not depend on the
    timing of threads and processes.

    The thread shares the interpreter lock with the learner, so it overlaps with training only where the environments,
    or the actor's kernels, release that lock. For small environments written in Python use ``same`` or ``single``; for
    large ones, ``workers``. In a free-threaded Python there is no such lock: all of the collection overlaps.

    Parameters
    ----------
    envs : list of environments, list of factories, vector environment, or list of vector environments
        Environments of gym (any version) or gymnasium. Each is reset once, at the call. Instances are stepped in the
        collector's thread; they stay the caller's, and are never closed. Factories are callables, optionally taking
        ``seed``; they are called in the collector's thread, and the environments that they make are closed with the
        feed. Vector environments may be those of gym, gymnasium, EnvPool and ale-py
        (:mod:`rlplay.engine.envs.vector_environment`). In a list (of instances, or of factories of them) each is a
        group, and ``groups`` stays 1: while the actor reacts to one, the others step. Those that step in the background
        (EnvPool, ale-py, ``AsyncVectorEnv``) are used that way. Others that release the interpreter lock are stepped by
        a thread each; they say so by an attribute ``releases_interpreter_lock = True``. A vector environment whose
        observations are torch tensors, or a list of them, is never taken through the host: rows, flags and actions stay
        on its device, which has to be the actor's, and no step is waited for (the guide has a page on it).
    actor : BaseActorModule
        Copied at the call. Each snapshot takes over its parameters, its buffers, the train/eval modes of its modules,
        and the plain attributes (numbers, strings, booleans, None) that the learner has changed.
    n_steps : int
        The length ``T`` of a fragment, in environment steps.
    sticky : bool
        If True, an environment whose episode ended is not stepped again until the next fragment (lists only).
    device : torch.device, optional
        The device on which fragments are delivered; by default the device of the actor's parameters.
    actor_device : torch.device, optional
        The device on which the behaviour copy of the actor runs; by default ``device``.
    lag : int
        The number of fragments by which collection runs ahead. With 0, learning is strictly on-policy and collection
        does not overlap with training. With 1, the next fragment is collected while the learner trains on this one.
    groups : int
        The number of contiguous parts into which the environments are split. The actor reacts to each group as a batch
        of its own, and groups take turns: where the actor is on a device, the collector's thread steps one group while
        the device computes the actions of the others. 1 for a list of vector environments, each of which is a group.
    seed : int, optional
        Seeds environments and actions. By default drawn from torch's global generator.
    reseed : bool
        If False, environments are reset without a seed, and factories are given none, so that environments keep the
        random state that you gave them. ``seed`` is then that of the actions alone.
    shard : tuple of two int, optional
        ``(i, n)``: this feed is the ``i``-th of ``n`` equal ones, in as many processes: with ``torchrun`` the rank and
        the world size. Environments, groups and their seeds are numbered as in the whole, so ``n`` such feeds with
        ``groups=g`` yield the parts of one feed with ``groups=n * g``. ``Episode.env`` and messages have these numbers.
        It needs a ``seed``, the same one in all of them, or a ``state``, which has it.
    state : dict, optional
        What ``feed.state_dict()`` has returned, maybe in another process: the stream goes on from there. The fragments
        that follow are, bit for bit, those that would have followed. Environments, actor, ``n_steps``, ``lag``,
        ``groups`` (of ``multi``: ``n_actors``), ``sticky``, ``final``, ``info``, ``shard``, ``compile`` and the kind of
        device must be those of the saved feed; engine and ``workers`` need not be. Load the actor's weights before the
        call. ``seed`` is ignored. The environments are reset once, and then put into their states, which are unpickled:
        pass only what you trust.
    final : bool
        If True, ``env.final`` holds the true last observation of each episode, and the actor's reaction to it.
    info : tuple of names, or dict of names to dtypes or example arrays
        The entries of the environments' info dicts to deliver in ``env.info``. In a tuple, each name is a float32
        scalar, NaN where the entry is absent. In a dict, each entry has the given dtype or the dtype and shape of the
        example array; absent entries are NaN, 0 or False. A dotted name reaches into nested dicts,
        named tuples and sequences: ``"episode.r"``, ``"pos.x"``, ``"legs.0"``. If an episode has ended and no
        environment has told a name yet, a RuntimeWarning names it, once.
    compile : bool
        If True, compile the step of a behaviour copy on the host, or capture the step of one on CUDA. The step of a
        vector environment in torch with an attribute ``capturable = True`` is captured in the same graph.

        On the host, a compiled step returns what an eager step returns, up to rounding, and bit for bit the same in all
        engines. With small networks, where calling PyTorch costs more than computing, a step of the collector takes
        little more than half the time. Compiling needs a C++ compiler, and several seconds at the call (counted by
        ``start_timeout``), fewer if torch has the result in its cache on disk. It is repeated when the train/eval mode
        first changes, if the step depends on the mode. The step's Python code runs only while it is traced: everything
        that this code reads must stay as it is, except tensors, parameters, buffers, modes, ``virtual`` and plain
        attributes. If a plain attribute that the step reads has changed, the step is compiled again; after several such
        changes it runs eagerly, with a warning: keep a schedule in a buffer. A step runs eagerly, with one
        RuntimeWarning that states the reason, if it branches on the values of a tensor, changes attributes that are not
        buffers (in train or in eval mode), uses a view of a weight that it keeps, draws from a third generator, or
        draws otherwise than by: ``rlplay.sampling``; the functions and methods of torch whose distribution numbers
        describe (``rand``, ``normal_``, dropout); ``torch.normal``; ``torch.multinomial`` of one sample, which gives -1
        where the eager function raises an error; and what rests on these, such as ``Categorical`` and ``Normal`` of
        ``torch.distributions`` without checks of their arguments (``validate_args=False``).

        On CUDA, a step is captured as a CUDA graph during the ``next()`` of the first fragment, and replayed with one
        launch. It returns, bit for bit, what an eager step returns. There, too, the Python code runs only once. While a
        plain attribute that the step reads has another value, the step runs eagerly, with a warning. A step also runs
        eagerly, with such a warning at the call or at the first fragment, if it needs the values of a tensor on the
        host, copies from or to the host, changes attributes that are not buffers, or draws from any generator but
        ``self.generator``; if ``reset`` does not honour a mask, changes a recurrent state where the mask is False, or
        draws random numbers; and in train/eval modes other than three: the modes at the call, train throughout, and
        eval throughout. While the first fragment is waited for, other threads must not draw from the device's global
        generator.
    autoreset : {"SAME_STEP", "NEXT_STEP", "DISABLED"}, optional
        When a vector environment that does not say it resets the parts whose episode has ended: in the step that ends
        it, in the following one, or not at all. By default such an environment is refused.
    workers, worker : int, "process" or "thread"
        The number and the kind of workers that step the environments; each worker keeps consecutive environments. With
        0, the collector's thread steps all environments itself. Worker processes write straight into the memory that
        the collector reads. They need factories, which are sent by value (cloudpickle). Waking a worker process and
        waiting for its answer costs about 50 us: processes do not pay if one step of all the environments of a worker
        takes less. Worker threads pay for environments that release the interpreter lock, or where that lock is off.
        With ``groups`` above 1, the actor reacts to one group while the workers step the others.
    timeout : float
        ``next()`` raises TimeoutError after so many seconds without progress.
    start_timeout : float
        The call raises TimeoutError if making and resetting the environments takes more than so many seconds.

    Returns
    -------
    Feed
        An iterator over :class:`~rlplay.engine.Fragment`, and a context manager. Close it when done.

    Notes
    -----
    PyTorch's settings are alike in every engine. The default dtype and the default device at this call hold for the
    environments and for the actor; if one of them is another at the first ``next()``, that ``next()`` is refused.
    Autocast at the first ``next()`` holds for the actor alone. Environments are made, reset and stepped with gradients
    enabled and without autocast. (The default dtype belongs to the whole process: an environment in a thread of this
    process sees it if another part of your program changes it later.) Collector processes have the numeric switches,
    such as those for TF32 and for deterministic algorithms, of this call, and from the first ``next()`` on of that.

    Raises
    ------
    TypeError, ValueError
        At the call, if an argument is not as described: environments whose spaces differ or whose observations do not
        fit their space, an actor whose actions or info do not fit, numbers out of range, a device that is not there, a
        ``state`` of another version, of other environments, of another actor or of other options.
    TimeoutError
        At the call, if it takes longer than ``start_timeout``.
    """
    options = Options(
        n_steps=n_steps, sticky=sticky, device=device, actor_device=actor_device, lag=lag, groups=groups, seed=seed,
        reseed=reseed, shard=shard, state=state, final=final, info=info, compile=compile, autoreset=autoreset,
        workers=workers, worker=worker, background=True, timeout=timeout, start_timeout=start_timeout,
    )  # fmt: skip
    return open_feed(envs, actor, options)
