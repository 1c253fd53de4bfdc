"""The protocol by which a parent process sends requests to a child process and receives the answers.

Worker processes, collector processes and the evaluation process all use it. The child owns a service object; a request
calls one of its methods. The parent's first message is the file descriptor of shared memory; the child's first answer
is about making the service, and contains its ``introduction``.

A request begins with a head of ``HEAD_SIZE`` bytes. Its first byte says what follows:

=========== ============================================================================================
``CALL``    an object, the method's name, its arguments and the number of file descriptors; then these
``SHORT``   nothing: the rest of the head is the whole request, which costs no pickling
``RESUME``  nothing: a service that has paused goes on
=========== ============================================================================================

An answer begins with one byte:

=========== ============================================================================================
``DONE``    nothing follows: the method returned None
``VALUE``   an object: what the method returned
``FAILED``  a packed exception: what the method, or making the service, raised
``PAUSED``  nothing follows: the request is not finished; the service waits for ``RESUME``
``CLOSED``  a list of str: what went wrong in closing the service; the last message
=========== ============================================================================================

The parent ends the service by closing its end of the link for writing; the process then closes the service and ends as
Python programs do. Must not import torch.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

import cloudpickle
import numpy as np
import numpy.typing as npt

from .child import Child
from .exceptions import add_note, pack, unpack
from .link import Disconnected, Link
from .sendable import unpickle_from
from .shared_memory import receive_memory

__all__ = ["DONE", "HEAD_SIZE", "PARTIAL", "PAUSED", "SHORT", "Server", "Service", "ServiceProcess"]

HEAD_SIZE = 12
CALL, SHORT, RESUME = 0, 1, 2
DONE, VALUE, FAILED, PAUSED, CLOSED = b"\0", b"\1", b"\2", b"\3", b"\4"
PARTIAL = b""
"""What :meth:`ServiceProcess.receive` returns if only a part of an answer has arrived; it is never sent."""


class Service(Protocol):
    """What a child process serves. The parent may call any of its methods, by name."""

    @property
    def introduction(self) -> Any:
        """The first answer to the parent."""

    def run_short(self, head: bytes) -> None:
        """Carry out a short request."""

    def close(self) -> list[str]:
        """Close what the service has made; return what went wrong."""


class Server:
    """The child's side: makes a service and answers the requests for it, one after another.

    Attributes
    ----------
    memory : uint8 array
        The memory that is shared with the parent from the start.
    """

    def __init__(self, link: Link) -> None:
        """Receive the shared memory."""
        self._link = link
        (fd,) = link.read_fds()
        self.memory: npt.NDArray[np.uint8] = receive_memory(fd)

    def run(self, make_service: bytes, args: bytes) -> None:
        """Make the service ``make_service(self, *args)``, serve it until the parent ends it, then close it.

        Both are pickled, by themselves: unpickling the first imports the modules that the service needs. What these
        consist of is exempted from garbage collection, since looking through all of PyTorch would take most of the time
        that the process needs to end.
        """
        service: Service | None = None
        try:
            make, values = _unpickled(make_service, args)
            service = make(self, *values)
            introduction = cloudpickle.dumps(service.introduction)
        except BaseException as error:  # SystemExit too: the parent has to receive it
            for complaint in [] if service is None else service.close():
                add_note(error, complaint)
            self._fail(error)
            return
        self._link.write_pickled(VALUE, introduction)
        with suppress(Disconnected):
            while True:
                self._answer(service)
        complaints = service.close()
        self._link.write_pickled(CLOSED, cloudpickle.dumps(complaints))

    def _answer(self, service: Any) -> None:
        """Wait for the next request and answer it. Raises :class:`Disconnected` if the parent ends the service."""
        head = self._link.read(HEAD_SIZE)
        try:
            answer = service.run_short(head) if head[0] == SHORT else self._call(service)
        except Disconnected:
            raise
        except BaseException as error:
            self._fail(error)
            return
        if answer is None:
            self._link.write(DONE)
        else:
            self._link.write_pickled(VALUE, answer)

    def pause(self) -> None:
        """Report that the service has paused in the middle of a request; wait until the parent resumes it.

        Raises
        ------
        Disconnected
            If the parent ends the service instead.
        """
        self._link.write(PAUSED)
        self._link.read(HEAD_SIZE)

    def _call(self, service: Service) -> bytes | None:
        name, args, n_fds = self._link.read_object()
        fds = self._link.read_fds() if n_fds else []
        value = getattr(service, name)(*args, *fds)
        return None if value is None else cloudpickle.dumps(value)

    def _fail(self, error: BaseException) -> None:
        self._link.write_pickled(FAILED, pack(error))


def _unpickled(make_service: bytes, args: bytes) -> tuple[Callable[..., Service], tuple[Any, ...]]:
    try:
        make = pickle.loads(make_service)
        gc.freeze()
        return make, pickle.loads(args)
    except BaseException as error:
        add_note(error, "raised in this process by unpickling what it was given: factories, actor, options")
        raise


def serve(link: Link, make_service: bytes, args: bytes) -> None:
    """Serve what :meth:`Server.run` is given: the target of a :class:`ServiceProcess`."""
    Server(link).run(make_service, args)


class ServiceProcess(Child):
    """The parent's side: a child process that serves requests.

    If the process has died, methods raise RuntimeError, whose message names the process and the signal or exit code.

    Parameters
    ----------
    make_service : callable
        Called in the child as ``make_service(server, *args)``. It and the arguments are sent by cloudpickle.
    name : str
        For messages.
    memory_fd : int
        The file descriptor of the memory to share. It stays the caller's.
    """

    def __init__(self, make_service: Callable[..., Service], *args: Any, name: str, memory_fd: int) -> None:
        super().__init__(serve, cloudpickle.dumps(make_service), cloudpickle.dumps(args), name=name)
        self._kind = PARTIAL
        """The first byte of the answer that is arriving."""
        self.has_died = False
        """Whether a method has raised RuntimeError since the process has died, or has closed its end of the link."""
        self._complaints: list[str] = []
        self._closed = False
        """Whether the last message has arrived."""
        try:
            self.link.write_fds(memory_fd)
        except BaseException as error:
            died = self._died() if isinstance(error, Disconnected) else None
            self.close(0.0)
            if died is None:
                raise
            raise died from None

    def request(self, method: str, *args: Any, fds: Sequence[int] = ()) -> None:
        """Request the call of a method of the service; file descriptors are passed as further arguments."""
        try:
            self.link.write(bytes([CALL]).ljust(HEAD_SIZE, b"\0"))
            self.link.write_object((method, args, len(fds)))
            if fds:
                self.link.write_fds(*fds)
        except Disconnected:
            raise self._died() from None

    def request_short(self, head: bytes) -> None:
        """Send a short request: ``HEAD_SIZE`` bytes that begin with ``SHORT``."""
        try:
            self.link.write(head)
        except Disconnected:
            raise self._died() from None

    def resume(self) -> None:
        """Let a service that has paused go on."""
        self.request_short(bytes([RESUME]).ljust(HEAD_SIZE, b"\0"))

    def receive(self) -> tuple[bytes, Any]:
        """Receive the next answer, of which a part has arrived; return its kind and its value or None.

        The kind is ``DONE``, ``VALUE``, ``PAUSED``, or ``PARTIAL`` if the answer is not complete: then this method is
        to be called again once the link can be read. It waits for nothing else.

        Raises
        ------
        BaseException
            What the service raised.
        RuntimeError
            If the process has died.
        TypeError
            If the answer cannot be unpickled in this process.
        """
        try:
            kind, data = self._receive()
        except Disconnected:
            raise self._died() from None
        if kind == VALUE:
            return kind, unpickle_from(self.name, data)
        if kind == FAILED:
            raise unpack(data)
        return kind, None

    def close(self, deadline: float | None = None, *, doing: Callable[[], str] = str) -> list[str]:
        """Have the service closed after the request under way, or when it pauses, and wait for the process's end.

        Answers that arrive are ignored. The process and its process group are killed when ``monotonic()`` reaches the
        deadline, by default in ``grace`` seconds; at once after an interrupt. May be called repeatedly.

        Parameters
        ----------
        doing : callable
            Returns what the process is doing, for the message.

        Returns
        -------
        list of str
            What went wrong in closing, to be shown to the user as warnings.
        """
        if self.released:
            return []
        deadline = monotonic() + self.grace if deadline is None else deadline
        try:
            self.request_end()
            with suppress(Disconnected):
                while not self._closed and self.wait_readable(deadline - monotonic()):
                    kind, data = self._receive()
                    if kind == CLOSED:
                        self._complaints, self._closed = pickle.loads(data), True
        except BaseException:
            super().close(0.0)
            raise
        complaints, self._complaints = self._complaints, []
        return complaints + super().close(deadline, doing=lambda: self._what_remains() or doing())

    def _what_remains(self) -> str:
        if not self._closed:
            return ""
        return (
            "its environments are closed, but a thread that is not daemonic, a process of `multiprocessing` that is "
            "not daemonic, or a function of `atexit` has not ended"
        )

    def _receive(self) -> tuple[bytes, bytes | bytearray]:
        """Receive what there is; return a complete answer, pickled, or ``PARTIAL``."""
        kind = self._kind
        if kind == PARTIAL:
            kind = bytes(self.link.read(1))
            if kind in (DONE, PAUSED):
                return kind, b""
            self._kind = kind
        data = self.link.receive_pickled()
        if data is None:
            return PARTIAL, b""
        self._kind = PARTIAL
        return kind, data

    def _died(self) -> RuntimeError:
        self.has_died = True
        return RuntimeError(f"{self.describe_end()}.")
