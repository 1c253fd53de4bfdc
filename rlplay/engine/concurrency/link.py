"""One end of a socket pair between two processes: sends bytes, pickled objects and file descriptors.

Must not import torch.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cloudpickle

__all__ = ["Disconnected", "Link"]

_LENGTH = struct.Struct("<Q")


_PART = 2**18
"""Bytes that are sent or received at once, at most."""


class Disconnected(Exception):
    """The other process has closed its end of the link, or has died."""


class Link:
    """One end of a connection to another process.

    Methods that send or receive raise :class:`Disconnected` if the other end is closed.

    Attributes
    ----------
    on_transfer : callable
        Called with the number of bytes whenever a part of a large object has been sent, or a part of any object has
        been received by :meth:`receive_pickled`.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket, self.fd = end, end.fileno()
        self.on_transfer: Callable[[int], object] = bool
        self._header: _Partial | None = None
        self._body: _Partial | None = None

    def write(self, data: bytes) -> None:
        """Send bytes. Blocks while the socket's buffer is full."""
        try:
            if len(data) <= _PART:
                self._socket.sendall(data)
                return
            left = memoryview(data)
            while left:
                n = self._socket.send(left[:_PART])
                left = left[n:]
                self.on_transfer(n)
        except OSError:
            raise Disconnected from None

    def read(self, n: int) -> bytes | bytearray:
        """Wait for the next ``n`` bytes, without the interpreter lock."""
        try:
            data = os.read(self.fd, min(n, _PART))
            return data if len(data) == n else self._read_rest(data, n)
        except OSError:
            raise Disconnected from None

    def _read_rest(self, data: bytes, n: int) -> bytearray:
        """Receive into memory that is allocated once, so that the time grows with ``n`` alone."""
        buffer = bytearray(n)
        buffer[: len(data)] = data
        left = memoryview(buffer)[len(data) :]
        while left:
            received = self._socket.recv_into(left) if data else 0
            if not received:
                raise Disconnected
            left = left[received:]
        return buffer

    def write_object(self, thing: Any) -> None:
        """Send an object, pickled by cloudpickle."""
        self.write_pickled(b"", cloudpickle.dumps(thing))

    def write_pickled(self, head: bytes, data: bytes) -> None:
        """Send the bytes of a head, which the receiver reads first, and an object that is pickled already."""
        head += _LENGTH.pack(len(data))
        if len(data) <= _PART:
            self.write(head + data)
        else:
            self.write(head)
            self.write(data)

    def read_object(self) -> Any:
        """Wait for the next object, which was sent by :meth:`write_object`."""
        return pickle.loads(self.read(*_LENGTH.unpack(self.read(_LENGTH.size))))

    def receive_pickled(self) -> bytearray | None:
        """Receive, without waiting, what has arrived of the next object; return it, pickled, once all of it has.

        Else return None; the next call goes on. An interrupt does no harm.
        """
        if self._header is None:
            self._header = _Partial(_LENGTH.size)
        if not self._header.fill(self._socket, self.on_transfer):
            return None
        if self._body is None:
            self._body = _Partial(*_LENGTH.unpack(self._header.buffer))
        if not self._body.fill(self._socket, self.on_transfer):
            return None
        data = self._body.buffer
        self._header = self._body = None
        return data

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


class _Partial:
    """Memory that is filled as bytes arrive."""

    def __init__(self, n: int) -> None:
        self.buffer = bytearray(n)
        self._counts = [0]
        """Their sum is the number of bytes that have been received."""

    def fill(self, end: socket.socket, on_transfer: Callable[[int], object]) -> bool:
        """Receive what there is, without waiting; return whether the memory is full."""
        counts = self._counts
        while len(self.buffer) > sum(counts):
            counts[:] = [sum(counts)]
            left = memoryview(self.buffer)[counts[0] : counts[0] + _PART]
            try:
                # received and counted in one call of C code: an interrupt in between would lose the count
                counts.extend(map(end.recv_into, (left,), (0,), (socket.MSG_DONTWAIT,)))
            except BlockingIOError:
                return False
            except OSError:
                raise Disconnected from None
            if not counts[-1]:
                raise Disconnected
            on_transfer(counts[-1])
        return True
