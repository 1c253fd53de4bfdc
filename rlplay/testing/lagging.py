"""The lagging device: a simulated accelerator that runs queued work as late as possible, or earlier with ``haste``.

Its memory is separate from the host's, and is filled with garbage when it is allocated and when it is released. Work is
queued on streams: the consumer's, the collector's, and those of the turns. Work runs when something waits for it
(``haste=0``), when it is queued (``haste=1``), or at random moments in between, drawn from a seeded generator. No clock
is involved, so every run is the same. If an engine lacks a synchronization, the numbers are wrong here; on a real
device they would often be right by luck, because the device is fast.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..contexts import contextmanager
from ..engine.acting.torch_context import TorchContext
from ..engine.envs.rows import Array
from ..engine.memory.lane import Lane, Place
from ..nested import Nested, leaves
from .device import GARBAGE, Block, BlockView, Event, Stream
from .operation_log import OperationLog

__all__ = ["LaggingLane"]


class LaggingLane(Lane):
    """A lane between the host and the lagging device; pass an instance as ``device=`` to a ``rollout``.

    PyTorch operations outside of this class run at once. A learner whose fragments are on the device must read them
    and update weights inside :meth:`launch`, or call :meth:`synchronize` first.

    Parameters
    ----------
    actor_on_host, consumer_on_host : bool
        Whether the behaviour copy is on the host rather than on the device; the same for the consumer's memory.
    haste : float
        Whenever work is queued, each stream runs pieces of its work one after the other, and continues after each piece
        with this probability. 0: work runs only when something waits for it. 1: work runs as soon as it is queued,
        except work behind a wait for an event that is not reached yet.
    seed : int
        The seed of the generator that draws these random decisions.

    Attributes
    ----------
    consumer, collector : stream
        The consumer's stream and the collector's stream.
    turns : dict of streams
        Those of the turns that have been used.
    """

    asynchronous = True

    def __init__(
        self, *, actor_on_host: bool = False, consumer_on_host: bool = False, haste: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(torch.device("cpu"), torch.device("cpu"))
        self._on_host = {Place.HOST: True, Place.ACTOR: actor_on_host, Place.CONSUMER: consumer_on_host}
        self._haste, self._random = haste, random.Random(seed)
        self._lock = threading.RLock()
        self.consumer, self.collector = Stream(), Stream()
        self.turns: dict[int, Stream] = {}
        self._blocks: dict[int, Block] = {}  # all blocks, by address
        self._free: list[Block] = []
        self._released: deque[Block] = deque()
        self._error: BaseException | None = None  # the first error of queued work since the host last waited

    @property
    def current(self) -> Stream:
        """The stream on which this thread queues work: the consumer's, or inside ``collecting`` another one."""
        stream: Stream = getattr(self._thread, "stream", self.consumer)
        return stream

    @property
    def _current_on_host(self) -> bool:
        """True if the memory of the current stream's side, collector or consumer, is on the host."""
        return self._on_host[Place.CONSUMER if self.current is self.consumer else Place.ACTOR]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's stream this thread's current one inside the ``with`` block."""
        previous, self._thread.stream = self.current, self.collector
        try:
            yield
        finally:
            self._thread.stream = previous

    def use_turn(self, turn: int | None) -> None:
        """Make the stream of one turn this thread's current one, or the collector's own stream again."""
        with self._lock:
            self._thread.stream = self.collector if turn is None else self.turns.setdefault(turn, Stream())

    def shared(self, one: Place, other: Place) -> bool:
        """Return True if both places are on the host, or both on the device."""
        return self._on_host[one] == self._on_host[other]

    def empty(self, place: Place, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate memory. On the device, a block that was released on a stream is reused on that stream."""
        size = prod(shape) * dtype.itemsize
        self.counters.count_memory(size, on_host=self._on_host[place])
        if self._on_host[place] or not size:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        with self._lock:
            self._reclaim_released()
            fitting = (b for b in self._free if b.stream is self.current and b.bytes.size == size)
            block = next(fitting, None)
            if block is None:
                block = Block(size, self.current)
                self._blocks[block.bytes.ctypes.data] = block
            else:
                self._free.remove(block)
        view = block.bytes.view(BlockView)
        # the finalizer may run in any thread, even while the lock is held, so it only appends, which is atomic
        weakref.finalize(view, self._released.append, block)
        return torch.from_numpy(view).view(dtype).view(tuple(shape))

    def lock(self, memory: Array) -> Tensor:
        """Count the memory as page-locked."""
        self.counters.count_memory(memory.nbytes, on_host=True)
        return super().lock(memory)

    def copy(self, target: Nested, source: Nested) -> None:
        """Queue the copies, unless all memory is on the host, or the copies are a part of queued or captured work.

        A queued copy does not keep device memory alive.
        """
        for one, other in zip(leaves(target), leaves(source), strict=True):
            on_host = self._block_of(one) is None, self._block_of(other) is None
            self._count_copy(one.nbytes, to_host=on_host[0], from_host=on_host[1])
            if self._is_working or (self._current_on_host and all(on_host)):
                one.copy_(other)
            else:
                get_one, get_other = self._getter(one), self._getter(other)
                self._queue(lambda one=get_one, other=get_other: one().copy_(other()))  # type: ignore[misc]

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Return copies if the learner is on the host, else the tensors, which only queued work changes."""
        return [x.clone() for x in sources] if self._on_host[Place.CONSUMER] else sources

    def launch(self, work: Callable[[], None]) -> None:
        """Queue work that runs in this thread's torch context; if this side's memory is on the host, run it at once."""
        if self._current_on_host:
            work()
            return
        self.counters.launches += 1
        torch_context, grad = TorchContext.here(self.actor_device), torch.is_grad_enabled()

        def in_context() -> None:
            with torch_context.applied(), torch.set_grad_enabled(grad):
                work()

        self._queue(in_context)

    def capture(
        self, work: Callable[[], None], generators: Sequence[torch.Generator], key: int = 0
    ) -> Callable[[], None]:
        """Log the operations of the work; return a function that repeats them. It does not keep device memory alive."""
        if self._current_on_host:
            return work
        self.synchronize()  # logging runs the work on the present contents of memory, and then undoes its effects

        def log_operations() -> Callable[[], None]:
            with self._lock, self._working(), OperationLog(generators, self._getter) as log:
                work()
            return log.replay

        return self._count_at_replay(log_operations)

    def borrow(self, tree: Nested) -> None:
        """Delay the reuse of the memory: all work that this stream has queued by the time of its release runs first."""
        with self._lock:
            for leaf in leaves(tree):
                block = self._block_of(leaf)
                if block is not None:
                    block.borrowers.append(self.current)

    def record(self, spent: Any = None) -> Any:
        """Return an event behind all work that is queued on the current stream, always a new one."""
        with self._lock:
            return self.current.record()

    def wait(self, event: Any) -> None:
        """Queue a wait for an event on the current stream."""
        self._queue(event)

    def host_wait(self, event: Any) -> None:
        """Run queued work until the event is reached.

        Raises
        ------
        BaseException
            The first error that work on the device has raised since the last call.
        """
        if event is not None:
            self.counters.host_waits += 1
            with self._lock:
                self._reach(event)
            self._raise_error()

    def reached(self, event: Any) -> bool:
        """Return whether an event has been reached, without running any work; raises errors as :meth:`host_wait`."""
        with self._lock:
            reached = event is None or event.reached
        if reached:
            self._raise_error()
        return reached

    def _raise_error(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def synchronize_collector(self) -> None:
        """Run all work that is queued on the collector's stream and on those of the turns."""
        with self._lock:
            for stream in [*self.turns.values(), self.collector]:
                self._reach(stream.record())
        self.host_wait(self.record())

    def synchronize(self) -> None:
        """Run all work that is queued on the current stream, and the work of other streams that it waits for."""
        self.host_wait(self.record())

    def _queue(self, work: Callable[[], None] | Event) -> None:
        """Queue work on the current stream, then run a random amount of all streams' work, see ``haste``."""
        with self._lock:
            self.current.pending.append(work)
            self._reclaim_released()
            streams = [self.consumer, self.collector, *self.turns.values()]
            for stream in self._random.sample(streams, len(streams)):
                while self._random.random() < self._haste and self._run_next(stream):
                    pass

    def _reach(self, event: Event) -> None:
        """Run work until the event is reached, including work of other streams that this stream waits for."""
        while not event.reached:
            next_work = event.stream.pending[0]
            if isinstance(next_work, Event):
                self._reach(next_work)
            self._run_next(event.stream)

    def _run_next(self, stream: Stream) -> bool:
        """Run the next piece of work; return False if there is none, or if it waits for another stream."""
        if not stream.pending or (isinstance(stream.pending[0], Event) and not stream.pending[0].reached):
            return False
        work = stream.pending.popleft()
        if not isinstance(work, Event):
            try:
                with self._working():
                    work()
            except BaseException as error:  # the next `host_wait` raises it, as on a real device
                self._error = self._error or error
        stream.done += 1
        return True

    @property
    def _is_working(self) -> bool:
        """True inside of :meth:`_working`."""
        return getattr(self._thread, "is_working", False)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Inside the ``with`` block, copies of this thread are made at once, as a part of the work that runs."""
        before, self._thread.is_working = self._is_working, True
        try:
            yield
        finally:
            self._thread.is_working = before

    def _reclaim_released(self) -> None:
        """For each released block, queue work that fills it with garbage, and offer it for reuse on its stream."""
        while self._released:
            block = self._released.popleft()
            block.stream.pending.extend(borrower.record() for borrower in block.borrowers)
            block.borrowers.clear()
            block.stream.pending.append(lambda block=block: block.bytes.fill(GARBAGE))  # type: ignore[misc]
            self._free.append(block)

    def _block_of(self, tensor: Tensor) -> Block | None:
        """Return the block that a tensor lies in; None if the tensor is on the host."""
        return self._blocks.get(tensor.untyped_storage().data_ptr())

    def _getter(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Return a function that returns the tensor, and keeps the tensor alive only if it is on the host."""
        block = self._block_of(tensor)
        if block is None:
            return lambda: tensor
        geometry = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        memory, dtype = block.bytes, tensor.dtype
        return lambda: torch.from_numpy(memory).view(dtype).as_strided(*geometry)
