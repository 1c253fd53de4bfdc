"""One end of a socket pair between two processes: bytes, pickles and file descriptors."""

from __future__ import annotations

import os
import pickle
import socket
import struct
from contextlib import suppress
from typing import Any

import cloudpickle

__all__ = ["Gone", "Link"]

_LENGTH = struct.Struct("<Q")


class Gone(Exception):
    """The other end of a link is not there any more."""


class Link:
    """One end of a way between two processes. Every method raises :class:`Gone` if the other end is not there."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self.fd = end, end.fileno()

    def write(self, data: bytes) -> None:
        """Send some bytes. Blocks if very many are on their way."""
        try:
            self._socket.sendall(data)
        except OSError:
            raise Gone from None

    def read(self, n: int) -> bytes:
        """Wait for the next ``n`` bytes, without the interpreter lock."""
        try:
            data = os.read(self.fd, n)
            while len(data) < n:
                more = os.read(self.fd, n - len(data))
                if not more:
                    raise Gone
                data += more
        except OSError:
            raise Gone from None
        return data

    def send(self, thing: Any, *fds: int) -> None:
        """Send a thing, by pickle, and file descriptors beside it."""
        data = cloudpickle.dumps(thing)
        try:
            socket.send_fds(self._socket, [_LENGTH.pack(len(data))], fds)
        except OSError:
            raise Gone from None
        self.write(data)

    def receive(self) -> tuple[Any, list[int]]:
        """Wait for the next thing that was sent, and the file descriptors beside it."""
        try:
            head, fds, _, _ = socket.recv_fds(self._socket, _LENGTH.size, 64)
        except OSError:
            raise Gone from None
        if len(head) < _LENGTH.size:
            head += self.read(_LENGTH.size - len(head)) if head else self._missing()
        return pickle.loads(self.read(*_LENGTH.unpack(head))), fds

    def _missing(self) -> bytes:
        raise Gone

    def finish(self) -> None:
        """Say that no more will be written: after what is under way, the other end finds this one :class:`Gone`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def expect_no_more(self) -> None:
        """Find the other end :class:`Gone` after what it has written already, whoever else may have kept it open."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
