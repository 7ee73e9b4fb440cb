"""The frames in which a blob of unknown length travels to the node that owns its shard.

One stream carries one staged blob: data frames, then one commit or abort frame. A frame is a kind
(one byte), a length (four bytes, big-endian) and as many bytes. A data frame of length 0 says that
the writer is still there. A stream that ends without a last frame was broken off. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, block_count

FRAME_BYTES_MAX = BLOCK_BYTES
"""Most bytes of one data frame."""

SHA256_BYTES = 32

HEAD = Struct("!BI")
DATA, COMMIT, ABORT = b"DCA"

ABORT_FRAME = HEAD.pack(ABORT, 0)
ALIVE_FRAME = HEAD.pack(DATA, 0)


class FrameError(Exception):
    """The stream is not one of frames; nothing more can be read from it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The writer's word that the blob is complete, and what it must be."""

    sha256: bytes
    blocks: bytes
    """The writer's block digests, 8 bytes each."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The writer's word that the blob is not wanted."""


Frame = memoryview | Commit | Abort
"""A piece of a data frame, or a last frame."""


def data_head(length: int) -> bytes:
    """Return what stands before ``length`` bytes of data, at most ``FRAME_BYTES_MAX``."""
    return HEAD.pack(DATA, length)


def commit_frame(sha256: bytes, blocks: bytes) -> bytes:
    """Return the whole commit frame."""
    return HEAD.pack(COMMIT, len(sha256) + len(blocks)) + sha256 + blocks


class FrameDecoder:
    """Turns the bytes of a stream, however they were cut, back into frames.

    Data is passed on as it comes, uncopied, in pieces of at most a frame; only heads and the commit
    frame are gathered, and a commit frame may be no longer than the data before it calls for.
    """

    __slots__ = ("_gathered", "_kind", "_left", "ended", "received")

    def __init__(self) -> None:
        self.received = 0
        """Bytes of data so far."""
        self.ended = False
        """True once the last frame has come."""
        self._kind = 0
        self._left = 0
        self._gathered = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that ``chunk`` holds or completes.

        Raises ``FrameError``; the decoder is then of no more use.
        """
        rest = memoryview(chunk)
        while rest:
            if self.ended:
                raise FrameError(f"{len(rest)} bytes follow the last frame")
            if self._kind == DATA:
                piece, rest = rest[: self._left], rest[self._left :]
                self._take(len(piece))
                yield piece
            elif self._kind == COMMIT:
                rest = self._gather(rest, self._left)
                if len(self._gathered) == self._left:
                    self.ended = True
                    yield Commit(bytes(self._gathered[:SHA256_BYTES]), bytes(self._gathered[SHA256_BYTES:]))
            else:
                rest = self._gather(rest, HEAD.size)
                if len(self._gathered) == HEAD.size and self._open():
                    yield Abort()

    def _take(self, length: int) -> None:
        self.received += length
        self._left -= length
        if not self._left:
            self._kind = 0

    def _gather(self, rest: memoryview, wanted: int) -> memoryview:
        missing = wanted - len(self._gathered)
        self._gathered += rest[:missing]
        return rest[missing:]

    def _open(self) -> bool:
        """Begin the frame whose head is gathered; return True when it is a whole abort frame."""
        kind, length = HEAD.unpack(self._gathered)
        self._gathered.clear()
        commit_bytes = SHA256_BYTES + block_count(self.received) * BLOCK_DIGEST_BYTES
        if not (
            (kind == DATA and length <= FRAME_BYTES_MAX)
            or (kind == COMMIT and length == commit_bytes)
            or (kind == ABORT and not length)
        ):
            raise FrameError(f"a frame of kind {kind} and {length} bytes cannot follow {self.received} bytes of data")
        self._kind = kind if length else 0
        self._left = length
        self.ended = kind == ABORT
        return self.ended
