"""The lagging device: a simulated accelerator on which everything happens late, in an order that a stream allows.

Its memory is apart from the host's, and filled with garbage when it is new and again when it is let go. What is asked
of it is queued, and done when somebody waits for it and not a moment sooner (``haste=0``), or at once (``haste=1``),
or now and then, by seeded dice, in between. There is no clock in it: the latest possible moment is as late as can be,
and comes in every run. Whatever the engine does right only by being fast, it does wrong here.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..engine.acting.torch_context import TorchContext
from ..engine.envs.rows import Array
from ..engine.memory.lane import Lane, Place
from ..nested import Nested, leaves
from .recording import Recording

__all__ = ["LaggingLane"]

_GARBAGE = 0xFF  # NaN in every float format, -1 in every integer


class _Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """A block's bytes while somebody has them. Dies with the last tensor over them."""


class _Stream:
    """What was asked for and not done yet, in order."""

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None] | _Event] = deque()
        self.done = 0

    def record(self) -> _Event:
        return _Event(self, self.done + len(self.pending))


class _Event(NamedTuple):
    """A point of a stream: behind its first ``position`` pieces of work."""

    stream: _Stream
    position: int

    @property
    def reached(self) -> bool:
        return self.stream.done >= self.position


class _Block:
    """A piece of device memory. It belongs to the stream that it was first allocated on, and is never given back."""

    def __init__(self, size: int, stream: _Stream) -> None:
        self.bytes: Array = np.full(size, _GARBAGE, np.uint8)
        self.stream = stream
        self.readers: list[_Stream] = []


class LaggingLane(Lane):
    """The engine's verbs on the lagging device: pass it as ``device=`` to a ``rollout``.

    What the device does not know of happens at once, as with any host code: a learner on the device has to read
    fragments and update weights inside :meth:`launch`, or to call :meth:`synchronize` first.

    Parameters
    ----------
    actor_on_host, consumer_on_host : bool
        Which of the two sides are on the host rather than on the device.
    haste : float
        The probability, after each call, that a stream goes on as far as it may. 0: nothing is done before somebody
        waits for it. 1: everything is done at once.
    seed : int
        Of the dice.
    """

    asynchronous = True

    def __init__(
        self, *, actor_on_host: bool = False, consumer_on_host: bool = False, haste: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(torch.device("cpu"), torch.device("cpu"))
        self._on_host = {Place.HOST: True, Place.ACTOR: actor_on_host, Place.CONSUMER: consumer_on_host}
        self._haste, self._dice = haste, random.Random(seed)
        self._lock = threading.RLock()
        self.consumer, self.collector = _Stream(), _Stream()
        self._current = threading.local()
        self._blocks: dict[int, _Block] = {}
        self._free: list[_Block] = []
        self._released: deque[_Block] = deque()
        self._error: BaseException | None = None

    @property
    def current(self) -> _Stream:
        """The stream that calls of this thread go to: the consumer's, or inside ``collecting`` the collector's."""
        stream: _Stream = getattr(self._current, "stream", self.consumer)
        return stream

    @property
    def _here_on_host(self) -> bool:
        """Whether the side that this thread is on, and so what it owns, is on the host."""
        return self._on_host[Place.CONSUMER if self.current is self.consumer else Place.ACTOR]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's stream the current one of this thread."""
        before, self._current.stream = self.current, self.collector
        try:
            yield
        finally:
            self._current.stream = before

    def shared(self, one: Place, other: Place) -> bool:
        """Whether two places are one: both on the host, or neither."""
        return self._on_host[one] == self._on_host[other]

    def empty(self, place: Place, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate; on the device, as a caching allocator does: what was let go on a stream is used again on it."""
        size = prod(shape) * dtype.itemsize
        if self._on_host[place] or not size:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        with self._lock:
            self._collect_released()
            fitting = (b for b in self._free if b.stream is self.current and b.bytes.size == size)
            block = next(fitting, None)
            if block is None:
                block = _Block(size, self.current)
                self._blocks[block.bytes.ctypes.data] = block
            else:
                self._free.remove(block)
        lease = block.bytes.view(_Lease)
        # may be called in any thread, inside anything: only an append, which is atomic
        weakref.finalize(lease, self._released.append, block)
        return torch.from_numpy(lease).view(dtype).view(tuple(shape))

    def copy(self, target: Nested, source: Nested) -> None:
        """Copy, later, unless all is on the host. No copy keeps device memory alive, as no copy engine does."""
        for one, other in zip(leaves(target), leaves(source), strict=True):
            if self._here_on_host and self._block_of(one) is self._block_of(other) is None:
                one.copy_(other)
            else:
                to, of = self._unowned(one), self._unowned(other)
                self._ask(lambda to=to, of=of: to().copy_(of()))  # type: ignore[misc]

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Copy what the learner keeps on the host; on the device it is changed by what is launched."""
        return [x.clone() for x in sources] if self._on_host[Place.CONSUMER] else sources

    def launch(self, work: Callable[[], None]) -> None:
        """Do some work later, as it would be done now in this thread; at once if this side is on the host."""
        if self._here_on_host:
            work()
            return
        torch_context, grad = TorchContext.here(self.actor_device), torch.is_grad_enabled()

        def done() -> None:
            with torch_context.applied(), torch.set_grad_enabled(grad):
                work()

        self._ask(done)

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Record the work, to be done again as it was; what is in device memory is not kept alive by that."""
        if self._here_on_host:
            return work
        self.synchronize()  # to record it is to do it, on what is there in the end, and to undo it
        with self._lock, Recording(generators, self._unowned) as recording:
            work()
        return recording.replay

    def borrow(self, tree: Nested) -> None:
        """Use the memory again only behind what the current stream has been asked for when it is let go."""
        with self._lock:
            for leaf in leaves(tree):
                block = self._block_of(leaf)
                if block is not None:
                    block.readers.append(self.current)

    def record(self) -> Any:
        """Mark this point of the current stream."""
        with self._lock:
            return self.current.record()

    def wait(self, event: Any) -> None:
        """Let the current stream wait, which is work like any other."""
        self._ask(event)

    def host_wait(self, event: Any) -> None:
        """Do what has to be done for the point to be reached.

        Raises
        ------
        BaseException
            What any work on the device raised since the last time.
        """
        if event is not None:
            with self._lock:
                self._reach(event)
                error, self._error = self._error, None
            if error is not None:
                raise error

    def synchronize(self) -> None:
        """Do all that the current stream has been asked for, and what that has to wait for."""
        self.host_wait(self.record())

    def _ask(self, work: Callable[[], None] | _Event) -> None:
        with self._lock:
            self.current.pending.append(work)
            self._collect_released()
            for stream in self._dice.sample([self.consumer, self.collector], 2):
                while self._dice.random() < self._haste and self._go_on(stream):
                    pass

    def _reach(self, event: _Event) -> None:
        while not event.reached:
            head = event.stream.pending[0]
            if isinstance(head, _Event):
                self._reach(head)
            self._go_on(event.stream)

    def _go_on(self, stream: _Stream) -> bool:
        """Do the next piece of work, unless it has to wait for another stream's."""
        if not stream.pending or (isinstance(stream.pending[0], _Event) and not stream.pending[0].reached):
            return False
        work = stream.pending.popleft()
        if not isinstance(work, _Event):
            try:
                work()
            except BaseException as error:  # told to whoever waits, as a device does
                self._error = self._error or error
        stream.done += 1
        return True

    def _collect_released(self) -> None:
        """Spoil what has been let go, in the order of its stream, and offer it again at once."""
        while self._released:
            block = self._released.popleft()
            block.stream.pending.extend(reader.record() for reader in block.readers)
            block.readers.clear()
            block.stream.pending.append(lambda block=block: block.bytes.fill(_GARBAGE))  # type: ignore[misc]
            self._free.append(block)

    def _block_of(self, tensor: Tensor) -> _Block | None:
        """Find the device memory that a tensor lies in; None if it lies on the host."""
        return self._blocks.get(tensor.untyped_storage().data_ptr())

    def _unowned(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Remember where a tensor lies; keep it alive only if it is not the device's own."""
        block = self._block_of(tensor)
        if block is None:
            return lambda: tensor
        place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        memory, dtype = block.bytes, tensor.dtype
        return lambda: torch.from_numpy(memory).view(dtype).as_strided(*place)
