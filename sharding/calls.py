"""The calls that one node makes to the shards of another, as they travel over a connection they share.

A message is a number, a kind, a length and as many bytes. A request bears a number of the caller's
choice, its answer the same one, and answers come in whatever order they are ready. A caller that has
lost interest says so with ``CANCEL``. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import NamedTuple
from uuid import UUID

from xxhash import xxh3_64_digest

from sharding.model import BLOCK_BYTES, BlobName, Buffer, Generation
from sharding.room import room_for

UPGRADE = "holdfast-calls-1"
"""What a connection is upgraded to before calls may flow."""

READ_BYTES_MAX = 8 << 20
"""Most bytes of one read, of a blob or of a staged one."""

SIZES_NAMES_MAX = 1000
MESSAGE_BYTES_MAX = READ_BYTES_MAX + 4096
SMALL_MESSAGE_BYTES = 64 << 10
"""Up to here a call's bytes are small: they travel with others."""

GATHERED_BYTES = 4 * SMALL_MESSAGE_BYTES
"""How much of small messages is received at a time."""

SHARDS_KNOWN_MAX = 1024
HEAD = Struct("!IBI")
NAME = Struct("!32s16s")
PUT = Struct("!32s16s8s")
READ = Struct("!32s16sQQI")
READ_STAGED = Struct("!16sQI")
SIZE = Struct("!q")
ABSENT = -1
SHA256_BYTES = 32


class CallError(Exception):
    """The stream is not one of calls; nothing more can be read from it."""


class Kind(IntEnum):
    """What a message is."""

    PUT = 1
    READ = 2
    SIZES = 3
    DELETE = 4
    READ_STAGED = 5
    CANCEL = 16
    DONE = 17
    REFUSED = 18


class Put(NamedTuple):
    """Store a small blob. ``digest`` is xxh3-64 of the bytes that were sent."""

    name: BlobName
    data: Buffer
    digest: bytes


class Read(NamedTuple):
    """Read ``length`` bytes from ``offset`` of a blob of ``size`` bytes."""

    name: BlobName
    size: int
    offset: int
    length: int


class Sizes(NamedTuple):
    """Tell the size of each file."""

    names: tuple[BlobName, ...]


class Delete(NamedTuple):
    """Remove one generation."""

    name: BlobName


class ReadStaged(NamedTuple):
    """Read bytes of a blob that is being staged."""

    generation: Generation
    offset: int
    length: int


Request = Put | Read | Sizes | Delete | ReadStaged


class Call(NamedTuple):
    """A request, the shard it is for, and the request id of the client behind it."""

    shard: UUID
    request_id: str
    request: Request

    @property
    def bytes_held(self) -> int:
        """Bytes that the call keeps in memory while it runs."""
        match self.request:
            case Put(data=data):
                return len(data)
            case Read(length=length) | ReadStaged(length=length):
                return length
            case _:
                return 0


class Message(NamedTuple):
    """One message as it arrived."""

    number: int
    kind: int
    body: Buffer


def request_message(number: int, call: Call) -> tuple[bytes, Buffer]:
    """Return a request as it travels: what stands before its data, and the data. Raises ``ValueError``."""
    try:
        kind, fields, data = pack(call.request)
    except StructError as error:
        raise ValueError(f"a number of the request is out of range: {error}") from None
    identity = call.request_id.encode("ascii", "ignore")[:255]
    start = b"".join((call.shard.bytes, bytes((len(identity),)), identity, fields))
    return HEAD.pack(number, kind, len(start) + len(data)) + start, data


def pack(request: Request) -> tuple[Kind, bytes, Buffer]:
    """Return a request's kind, its fields and its data."""
    match request:
        case Put(name, data, digest):
            return Kind.PUT, PUT.pack(*packed(name), digest), data
        case Read(name, size, offset, length):
            return Kind.READ, READ.pack(*packed(name), size, offset, length), b""
        case Sizes(names):
            return Kind.SIZES, b"".join(NAME.pack(*packed(name)) for name in names), b""
        case Delete(name):
            return Kind.DELETE, NAME.pack(*packed(name)), b""
        case ReadStaged(generation, offset, length):
            return Kind.READ_STAGED, READ_STAGED.pack(generation.bytes, offset, length), b""


def parse_request(message: Message) -> Call:
    """Return the call in a message. Raises ``CallError``."""
    body = memoryview(message.body)
    try:
        shard, start = shard_uid(bytes(body[:16])), 17 + body[16]
        if start > len(body):
            raise ValueError("its request id is cut short")
        identity = bytes(body[17:start]).decode("ascii")
        return Call(shard, identity, unpack(message.kind, body[start:]))
    except (ValueError, IndexError, StructError) as error:
        raise CallError(f"a request of kind {message.kind} and {len(body)} bytes cannot be read: {error}") from None


@lru_cache(SHARDS_KNOWN_MAX)
def shard_uid(packed: bytes) -> UUID:
    """Return a shard's uid: they are few, and a ``UUID`` costs as much to make as the rest of a request to read."""
    return UUID(bytes=packed)


def unpack(kind: int, fields: memoryview) -> Request:
    match kind:
        case Kind.PUT:
            data = fields[PUT.size :]
            if len(data) > BLOCK_BYTES:
                raise ValueError(f"a blob of more than {BLOCK_BYTES} bytes must be staged")
            sha256, generation, digest = PUT.unpack_from(fields)
            return Put(name_of(sha256, generation), data, digest)
        case Kind.READ:
            sha256, generation, size, offset, length = READ.unpack(fields)
            return Read(name_of(sha256, generation), size, offset, checked_length(length))
        case Kind.SIZES:
            if len(fields) > SIZES_NAMES_MAX * NAME.size:
                raise ValueError(f"more than {SIZES_NAMES_MAX} names")
            return Sizes(tuple(name_of(*pair) for pair in NAME.iter_unpack(fields)))
        case Kind.DELETE:
            return Delete(name_of(*NAME.unpack(fields)))
        case Kind.READ_STAGED:
            generation, offset, length = READ_STAGED.unpack(fields)
            return ReadStaged(Generation(UUID(bytes=generation)), offset, checked_length(length))
        case _:
            raise ValueError("there is no such request")


def packed(name: BlobName) -> tuple[bytes, bytes]:
    if len(name.sha256) != SHA256_BYTES:
        raise ValueError(f"a sha256 has {SHA256_BYTES} bytes, this one {len(name.sha256)}")
    return name.sha256, name.generation.bytes


def name_of(sha256: bytes, generation: bytes) -> BlobName:
    return BlobName(sha256, Generation(UUID(bytes=generation)))


def checked_length(length: int) -> int:
    if length > READ_BYTES_MAX:
        raise ValueError(f"length is at most {READ_BYTES_MAX}")
    return length


def put_request(name: BlobName, data: Buffer) -> Put:
    """Return the request that stores ``data`` under ``name``."""
    return Put(name, data, xxh3_64_digest(data))


def arrived_whole(put: Put) -> bool:
    """Say whether the bytes of a put are those that were sent."""
    return xxh3_64_digest(put.data) == put.digest


def pack_sizes(sizes: Sequence[int | None]) -> bytes:
    """Return the answer to ``Sizes``."""
    return b"".join(SIZE.pack(ABSENT if size is None else size) for size in sizes)


def parse_sizes(body: Buffer, count: int) -> list[int | None]:
    """Return what the owner answered to ``Sizes`` of ``count`` names. Raises ``CallError``."""
    if len(body) != count * SIZE.size:
        raise CallError(f"{len(body)} bytes are not {count} sizes")
    return [None if size == ABSENT else size for (size,) in SIZE.iter_unpack(body)]


class MessageReceiver:
    """One end of a connection: says where the next bytes belong, and which messages they completed.

    Messages that fit in a buffer of ``gathered_bytes`` are gathered there and copied out; the body of a longer one
    goes straight to memory of its own.
    """

    __slots__ = ("_buffer", "_end", "_filled", "_large", "_large_body")

    def __init__(self, gathered_bytes: int = GATHERED_BYTES) -> None:
        self._buffer = memoryview(bytearray(gathered_bytes))
        self._end = 0
        self._large: Message | None = None
        self._large_body = memoryview(b"")
        self._filled = 0

    def room(self) -> memoryview:
        """Return where the next bytes of the stream go; never empty."""
        if self._large is not None:
            return self._large_body[self._filled :]
        return self._buffer[self._end :]

    def advance(self, length: int) -> list[Message]:
        """Note that ``length`` bytes were put where ``room`` said. Raises ``CallError``."""
        if self._large is None:
            self._end += length
            return self._take_gathered()
        self._filled += length
        if self._filled < len(self._large_body):
            return []
        done, self._large, self._large_body = self._large, None, memoryview(b"")
        return [done]

    def _take_gathered(self) -> list[Message]:
        messages: list[Message] = []
        start = 0
        while self._end - start >= HEAD.size:
            number, kind, length = HEAD.unpack_from(self._buffer, start)
            if length > MESSAGE_BYTES_MAX:
                raise CallError(f"a message of kind {kind} has {length} bytes")
            body = start + HEAD.size
            if self._end - body >= length:
                messages.append(Message(number, kind, bytes(self._buffer[body : body + length])))
                start = body + length
            elif HEAD.size + length > len(self._buffer):
                self._begin_large(number, kind, length, body)
                return messages
            else:
                break
        self._keep_from(start)
        return messages

    def _begin_large(self, number: int, kind: int, length: int, start: int) -> None:
        self._large_body, self._filled = room_for(length), self._end - start
        self._large = Message(number, kind, self._large_body)
        self._large_body[: self._filled] = self._buffer[start : self._end]
        self._end = 0

    def _keep_from(self, start: int) -> None:
        """Move what is not complete yet to the front."""
        if start:
            left = self._end - start
            self._buffer[:left] = self._buffer[start : self._end]
            self._end = left
