"""The frames in which a blob of unknown length travels to the node that owns its shard.

One stream carries one staged blob: data frames, then a commit or an abort frame; the owner sends
one answer frame back, at the end or as soon as it refuses. A frame is a kind (one byte), a length
(four bytes, big-endian) and as many bytes. A data frame of length 0 says that the writer is still
there. A stream that ends without a last frame was broken off. Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from struct import Struct

from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, block_count
from sharding.room import room_for

UPGRADE = "holdfast-frames-1"
"""What a connection is upgraded to before frames may flow."""

FRAME_BYTES_MAX = BLOCK_BYTES
"""Most bytes of one data frame."""

ANSWER_BYTES_MAX = 16 << 10
SHA256_BYTES = 32

HEAD = Struct("!BI")
DATA, COMMIT, ABORT, ANSWER = b"DCAR"

HEAD_ITSELF = 0

ALIVE_FRAME = HEAD.pack(DATA, 0)
ABORT_FRAME = HEAD.pack(ABORT, 0)
DONE_FRAME = HEAD.pack(ANSWER, 0)


class FrameError(Exception):
    """The stream is not one of frames; nothing more can be read from it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The writer's word that the blob is complete, and what it must be."""

    sha256: bytes
    blocks: bytes
    """The writer's block digests, 8 bytes each."""


class Signal(Enum):
    """What else the bytes of a stream can complete."""

    BLOCK = auto()
    """A block is full: it must be taken before there is room for more."""
    ABORT = auto()
    """The writer does not want the blob."""


def data_head(length: int) -> bytes:
    """Return what stands before ``length`` bytes of data, at most ``FRAME_BYTES_MAX``."""
    return HEAD.pack(DATA, length)


def commit_frame(sha256: bytes, blocks: bytes) -> bytes:
    """Return the whole commit frame."""
    return HEAD.pack(COMMIT, len(sha256) + len(blocks)) + sha256 + blocks


def refusal_frame(body: bytes) -> bytes:
    """Return the whole answer frame of an owner that refuses; ``body`` says why."""
    return HEAD.pack(ANSWER, len(body)) + body


class StreamReceiver:
    """The owner's end of a stream: says where the next bytes belong, and what they completed.

    The bytes of data frames go straight into ``block``, however the frames were cut. A commit frame
    may be no longer than the data before it calls for.
    """

    __slots__ = ("_kind", "_left", "_parts", "_parts_filled", "before", "block", "ended", "filled")

    def __init__(self) -> None:
        self.block = room_for(BLOCK_BYTES)
        self.filled = 0
        """Bytes of data in ``block``."""
        self.before = 0
        """Bytes of data in the blocks that were taken."""
        self.ended = False
        """Whether the last frame has come; nothing may follow it."""
        self._expect_head()

    def room(self) -> memoryview:
        """Return where the next bytes of the stream go; it is never empty between the events."""
        if self._kind == DATA:
            return self.block[self.filled : self.filled + self._left]
        return self._parts[self._parts_filled :]

    def advance(self, length: int) -> Commit | Signal | None:
        """Note that ``length`` bytes were put where ``room`` said, and return what they completed.

        Raises ``FrameError``; the stream is then of no more use.
        """
        if self._kind == DATA:
            self.filled += length
            self._left -= length
            if not self._left:
                self._expect_head()
            return Signal.BLOCK if self.filled == BLOCK_BYTES else None
        self._parts_filled += length
        if self._parts_filled < len(self._parts):
            return None
        return self._take_head() if self._kind == HEAD_ITSELF else self._take_commit()

    def take_block(self) -> None:
        """Say that the bytes in ``block`` were taken, so that the next may come."""
        self.before += self.filled
        self.filled = 0

    def _expect(self, kind: int, length: int) -> None:
        self._kind = kind
        self._left = length
        self._parts = memoryview(bytearray(length if kind != DATA else 0))
        self._parts_filled = 0

    def _expect_head(self) -> None:
        self._expect(HEAD_ITSELF, HEAD.size)

    def _take_head(self) -> Signal | None:
        kind, length = HEAD.unpack(self._parts)
        received = self.before + self.filled
        commit_bytes = SHA256_BYTES + block_count(received) * BLOCK_DIGEST_BYTES
        if kind == DATA and length <= FRAME_BYTES_MAX:
            self._expect(DATA, length) if length else self._expect_head()
        elif kind == COMMIT and length == commit_bytes:
            self._expect(COMMIT, length)
        elif kind == ABORT and not length:
            self.ended = True
            return Signal.ABORT
        else:
            raise FrameError(f"a frame of kind {kind} and {length} bytes cannot follow {received} bytes of data")
        return None

    def _take_commit(self) -> Commit:
        self.ended = True
        return Commit(bytes(self._parts[:SHA256_BYTES]), bytes(self._parts[SHA256_BYTES:]))


def parse_answer(stream: bytes) -> bytes | None:
    """Return the body of the answer frame that ``stream`` begins with, None while it is not complete.

    An empty body says that the owner did as it was told. Raises ``FrameError``.
    """
    if len(stream) < HEAD.size:
        return None
    kind, length = HEAD.unpack_from(stream)
    if kind != ANSWER or length > ANSWER_BYTES_MAX or len(stream) > HEAD.size + length:
        raise FrameError(f"a frame of kind {kind} and {length} bytes is no answer")
    return stream[HEAD.size :] if len(stream) == HEAD.size + length else None
