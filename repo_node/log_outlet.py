"""Standard error that may take nothing for a while: whoever reads it must not be able to hold a node up.

A pipe or a socket is asked first whether it takes a piece. Pieces are no longer than what a pipe takes whole, so that
the lines of several processes do not mix.
"""

from __future__ import annotations

import io
import os
import select
from collections import deque
from typing import TextIO

PIECE_BYTES_MAX = select.PIPE_BUF
KEPT_BYTES_MAX = 1 << 20
"""What waits for the stream at most; later lines are lost then, and counted."""


class LogOutlet:
    """Writes text to ``stream``: as much as it takes at once, where that can be asked."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._file = file_of(stream)
        self._gate = select.poll()
        if self._file is not None:
            self._gate.register(self._file, select.POLLOUT)
        self.lost = 0
        """Texts that were dropped since somebody last set this to 0."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._pieces

    def put(self, text: str) -> None:
        """Add ``text`` to what is to be written, or drop it where too much waits already."""
        data = text.encode("utf-8", "backslashreplace")
        if self._bytes + len(data) > KEPT_BYTES_MAX:
            self.lost += 1
            return
        self._bytes += len(data)
        if self._pieces and len(self._pieces[-1]) + len(data) <= PIECE_BYTES_MAX:
            self._pieces[-1] += data
        else:
            starts = range(0, len(data), PIECE_BYTES_MAX)
            self._pieces.extend(data[start : start + PIECE_BYTES_MAX] for start in starts)

    def write(self, *, waits: bool = False) -> None:
        """Write what the stream takes now, or all of it if the caller ``waits``.

        Raises ``OSError``, ``ValueError`` when the stream is closed; nothing is kept then.
        """
        try:
            if self._stream.closed:  # its descriptor may be another file's by now
                raise ValueError("the stream is closed")
            while self._pieces and (waits or self._file is None or self._gate.poll(0)):
                piece = self._pieces[0]
                count = self._write(piece)
                self._bytes -= count
                if count < len(piece):
                    self._pieces[0] = piece[count:]
                    if not count:
                        return
                else:
                    self._pieces.popleft()
        except Exception:
            self._pieces.clear()
            self._bytes = 0
            raise

    def _write(self, piece: bytes) -> int:
        if self._file is None:
            self._stream.write(piece.decode("utf-8", "replace"))
            self._stream.flush()
            return len(piece)
        try:
            return os.write(self._file, piece)
        except BlockingIOError:  # whoever shares it has made it so
            return 0


def file_of(stream: TextIO) -> int | None:
    """Return the file behind ``stream``; None where it is in memory."""
    try:
        return stream.fileno()
    except (io.UnsupportedOperation, AttributeError, ValueError):
        return None
