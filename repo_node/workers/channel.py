"""Messages between two processes of a node, in order, some of them with descriptors.

One packet each on a pair of sockets that nobody else has. Both ends are of one release and one user, so they
trust one another with pickled objects.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

MESSAGE_BYTES_MAX = 128 << 10
DESCRIPTORS_MAX = 8


class ChannelBroken(Exception):
    """The other end is gone, or takes nothing: it cannot be relied on any more."""


class Channel:
    """One end, served by the event loop. ``on_end`` is called once, when the other end is gone."""

    def __init__(
        self, end: socket.socket, on_message: Callable[[Any, list[int]], None], on_end: Callable[[], None]
    ) -> None:
        self._end = end
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        end.setblocking(False)
        self._loop.add_reader(end.fileno(), self._receive)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send without waiting. Raises ``ChannelBroken``."""
        try:
            socket.send_fds(self._end, [pickle.dumps(message)], descriptors)
        except OSError as error:
            # Also when its queue is full: hundreds of messages are waiting there.
            raise ChannelBroken(str(error)) from error

    def close(self) -> None:
        """Close this end; may be called twice."""
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()

    def _receive(self) -> None:
        try:
            message, descriptors = receive(self._end)
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self.close()
            self._on_end()
            return
        self._on_message(message, descriptors)


def receive(end: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message and its descriptors. Raises ``EOFError`` when the other end is gone, ``OSError``."""
    data, descriptors, _, _ = socket.recv_fds(end, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise EOFError
    return pickle.loads(data), descriptors  # noqa: S301 -- see above
