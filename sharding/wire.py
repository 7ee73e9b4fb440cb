"""What both ends of the internal listener must agree on: paths, headers and errors. Pure."""

from __future__ import annotations

import json
import re
from uuid import UUID

from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.model import ShardId

PREFIX = "/internal/v1"
TOKEN_PURPOSE = "internal-listener-v1"
"""The purpose for which the internal listener's token is derived from the cluster key."""

AUTHORIZATION = "Authorization"
AUTHORIZATION_SCHEME = "Holdfast"
CLUSTER_HEADER = "X-Holdfast-Cluster"
NODE_HEADER = "X-Holdfast-Node"
"""The node that calls."""

REQUEST_ID_HEADER = "X-Request-Id"

LENGTH_HEADER = "X-Holdfast-Length"
"""About how many bytes a staged blob will have, where its writer knows."""

ERROR_BODY_BYTES_MAX = 16 << 10
MESSAGE_CHARACTERS_MAX = 1000

UNAVAILABLE = "shard_unavailable"
BAD_REQUEST = "bad_request"
CORRUPT = "replica_corrupt"

CHANGED = "the bytes that arrived do not have the block digests of those that were sent"
NOT_STAGED = "no such blob is being staged here"

ERRORS: dict[str, tuple[int, type[ShardError]]] = {
    UNAVAILABLE: (503, ShardUnavailable),
    "shard_full": (507, ShardFull),
    "shard_refused": (409, ShardRefused),
    BAD_REQUEST: (400, ShardRefused),
    "replica_missing": (404, ReplicaMissing),
    CORRUPT: (422, ReplicaCorrupt),
}
"""Every error that crosses the wire: its code, its HTTP status, and what it is on both ends."""

UUID_PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Refusal(Exception):
    """An error as it crosses the wire; ``code`` is one of ``ERRORS``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message[:MESSAGE_CHARACTERS_MAX]

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return ERRORS[self.code][0]

    def body(self) -> bytes:
        """Return the JSON that carries it."""
        return json.dumps({"error": self.code, "message": self.message}).encode()


def parse_uuid(text: str) -> UUID:
    """Return the UUID that ``text`` spells in its one canonical form. Raises ``ValueError``."""
    if not UUID_PATTERN.fullmatch(text):
        raise ValueError("a uuid is written as 8-4-4-4-12 lower-case hex digits")
    return UUID(text)


REFUSABLE = (Refusal, ShardError, TimeoutError)
"""What ``refusal_of`` has words for."""


def refusal_of(error: Refusal | ShardError | TimeoutError) -> Refusal:
    """Return what is said on the wire of ``error``."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TimeoutError):
        return Refusal(UNAVAILABLE, "the bytes did not come in time")
    code = next((code for code, (_, kind) in ERRORS.items() if isinstance(error, kind)), UNAVAILABLE)
    return Refusal(code, str(error).removeprefix(f"shard {error.shard}: "))


def parse_error(shard: ShardId, body: bytes, status: int | None = None) -> ShardError:
    """Return the error that an answer stands for; one that is not understood says nothing about the shard's files.

    ``status`` is the HTTP status it came with, where there was one.
    """
    try:
        document = json.loads(body)
        known_status, kind = ERRORS[document["error"]]
        if status in (None, known_status):
            return kind(shard, str(document["message"])[:MESSAGE_CHARACTERS_MAX])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # a proxy's page, another program's answer, or a later version's word
    return ShardUnavailable(shard, f"its owner gave an answer that is not understood (status {status})")
