"""One end of a socket pair between two processes: sends bytes, pickled objects and file descriptors.

Must not import torch.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from contextlib import suppress
from typing import Any

import cloudpickle

__all__ = ["Disconnected", "Link"]

_LENGTH = struct.Struct("<Q")


class Disconnected(Exception):
    """The other process has closed its end of the link, or has died."""


class Link:
    """One end of a connection to another process.

    Methods that send or receive raise :class:`Disconnected` if the other end is closed.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket, self.fd = end, end.fileno()

    def write(self, data: bytes) -> None:
        """Send bytes. Blocks while the socket's buffer is full."""
        try:
            self._socket.sendall(data)
        except OSError:
            raise Disconnected from None

    def read(self, n: int) -> bytes:
        """Wait for the next ``n`` bytes, without the interpreter lock."""
        try:
            data = os.read(self.fd, n)
            while len(data) < n:
                more = os.read(self.fd, n - len(data))
                if not more:
                    raise Disconnected
                data += more
        except OSError:
            raise Disconnected from None
        return data

    def write_object(self, thing: Any) -> None:
        """Send an object, pickled by cloudpickle."""
        self.write_pickled(b"", cloudpickle.dumps(thing))

    def write_pickled(self, head: bytes, data: bytes) -> None:
        """Send the bytes of a head, which the receiver reads first, and an object that is pickled already."""
        self.write(head + _LENGTH.pack(len(data)) + data)

    def read_object(self) -> Any:
        """Wait for the next object, which was sent by :meth:`write_object`."""
        return pickle.loads(self.read(*_LENGTH.unpack(self.read(_LENGTH.size))))

    def write_fds(self, *fds: int) -> None:
        """Send file descriptors, with one byte that carries them."""
        try:
            socket.send_fds(self._socket, [b"\0"], fds)
        except OSError:
            raise Disconnected from None

    def read_fds(self) -> list[int]:
        """Wait for the file descriptors that :meth:`write_fds` has sent; the caller has to close them."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 1, 64)
        except OSError:
            raise Disconnected from None
        if not data:
            raise Disconnected
        return fds

    def finish_writing(self) -> None:
        """Close this end for writing: the other process receives what was sent, then :class:`Disconnected`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def finish_reading(self) -> None:
        """Close this end for reading: what has arrived can still be read, then ``read`` raises :class:`Disconnected`.

        Needed after the death of the other process, since a program that it started may keep its end open.
        """
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
