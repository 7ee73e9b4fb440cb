"""What can go wrong in the store.

::

    StoreError                    facts as attributes, and ``retryable``
    ├── ShardError                one shard failed; carries the shard's id
    │   ├── ShardUnavailable      not reached, timed out or known to fail: says nothing about its files
    │   ├── ShardFull             below its reserve, or the disk is full
    │   ├── ShardRefused          the shard's owner will not do this (read-only, wrong owner, bad request)
    │   ├── ReplicaMissing        the shard's owner looked, and the file is not there
    │   └── ReplicaCorrupt        the file is there and its bytes or its size are wrong, or the disk cannot read it
    ├── WriteQuorumNotMet         fewer durable copies than the acknowledgement needs
    └── BlobUnavailable           no replica could be read; the blob may well exist

"Missing" is said only by a shard that looked: every doubt is ``ShardUnavailable``.
"""

from __future__ import annotations

from sharding.model import ShardId


class StoreError(Exception):
    """Any failure of the store. ``retryable`` says whether the same call may succeed later."""

    retryable = False


class ShardError(StoreError):
    """One shard failed at one call."""

    def __init__(self, shard: ShardId, message: str) -> None:
        super().__init__(f"shard {shard}: {message}")
        self.shard = shard


class ShardUnavailable(ShardError):
    retryable = True


class ShardFull(ShardError):
    retryable = True


class ShardRefused(ShardError):
    pass


class ReplicaMissing(ShardError):
    pass


class ReplicaCorrupt(ShardError):
    pass


class WriteQuorumNotMet(StoreError):
    """An upload reached ``durable`` of the ``needed`` copies, or too few zones; nothing is visible.

    ``full`` is true when it was for want of space alone; ``reasons`` are for the log.
    """

    retryable = True

    def __init__(
        self,
        durable: int,
        needed: int,
        *,
        zones: int = 0,
        zones_needed: int = 0,
        full: bool = False,
        reasons: tuple[ShardError, ...] = (),
    ) -> None:
        message = f"{durable} durable copies of the {needed} needed for an acknowledgement"
        if durable >= needed and zones < zones_needed:
            message += f", but in {zones} of the {zones_needed} zones needed"
        super().__init__(message)
        self.reasons = reasons
        self.durable = durable
        self.needed = needed
        self.full = full


class BlobUnavailable(StoreError):
    """None of the known replicas could be read now, for ``reasons``; the blob may well exist."""

    retryable = True

    def __init__(self, sha256: bytes, reasons: tuple[StoreError, ...]) -> None:
        causes = "; ".join(map(str, reasons)) or "it has no replica"
        super().__init__(f"blob {sha256.hex()}: {causes}")
        self.sha256 = sha256
        self.reasons = reasons
