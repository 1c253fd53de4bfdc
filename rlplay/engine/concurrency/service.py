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

The parent ends the service by closing its end of the link for writing. Must not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

import cloudpickle
import numpy as np
import numpy.typing as npt

from .child import Child
from .exceptions import pack, unpack
from .link import Disconnected, Link
from .shared_memory import receive_memory

__all__ = ["DONE", "HEAD_SIZE", "PAUSED", "SHORT", "Server", "Service", "ServiceProcess"]

HEAD_SIZE = 12
CALL, SHORT, RESUME = 0, 1, 2
DONE, VALUE, FAILED, PAUSED, CLOSED = b"\0", b"\1", b"\2", b"\3", b"\4"


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

    def run(self, make_service: Callable[..., Service], *args: Any) -> None:
        """Make ``make_service(self, *args)``, and serve it until the parent ends it; then close it."""
        link = self._link
        try:
            service = make_service(self, *args)
            introduction = cloudpickle.dumps(service.introduction)
        except BaseException as error:  # SystemExit too: the parent has to receive it
            self._fail(error)
            return
        link.write_pickled(VALUE, introduction)
        with suppress(Disconnected):
            while True:
                head = link.read(HEAD_SIZE)
                try:
                    if head[0] == SHORT:
                        service.run_short(head)
                        answer = None
                    else:
                        answer = self._call(service)
                except Disconnected:
                    raise
                except BaseException as error:
                    self._fail(error)
                    continue
                if answer is None:
                    link.write(DONE)
                else:
                    link.write_pickled(VALUE, answer)
        complaints = service.close()
        sys.stdout.flush()  # since the parent may end the process once it has read the answer
        link.write_pickled(CLOSED, cloudpickle.dumps(complaints))

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
        self._link.write_pickled(FAILED, cloudpickle.dumps(pack(error)))


def serve(link: Link, make_service: Callable[..., Service], *args: Any) -> None:
    """Serve ``make_service(server, *args)``: the target of a :class:`ServiceProcess`."""
    Server(link).run(make_service, *args)


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
        super().__init__(serve, make_service, *args, name=name)
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
        """Wait for the next answer; return its kind (``DONE``, ``VALUE`` or ``PAUSED``) and its value or None.

        Raises
        ------
        BaseException
            What the service raised.
        RuntimeError
            If the process has died.
        """
        try:
            kind, value = self._read()
        except Disconnected:
            raise self._died() from None
        if kind == FAILED:
            raise unpack(value)
        return kind, value

    def end_service(self) -> None:
        """Request that the service is closed after the request under way, if any, or when it pauses."""
        self.link.finish_writing()

    def receive_complaints(self, deadline: float) -> list[str] | None:
        """Wait, after :meth:`end_service`, for what went wrong in closing the service; ignore other answers.

        Returns None if the answer has not come when ``monotonic()`` reaches the deadline, [] if the process has died.
        """
        with suppress(Disconnected):
            while self.wait_readable(deadline - monotonic()):
                kind, value = self._read()
                if kind == CLOSED:
                    complaints: list[str] = value
                    return complaints
            return None
        return []

    def _read(self) -> tuple[bytes, Any]:
        kind = self.link.read(1)
        return kind, None if kind in (DONE, PAUSED) else self.link.read_object()

    def _died(self) -> RuntimeError:
        return RuntimeError(f"{self.describe_end()}.")
