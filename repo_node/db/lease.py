"""The lease of the primary node as a row. It is kept on a connection of its own, so that no load delays a renewal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from repo_node.db.pool import heed_standby
from sharding.model import NodeId


class NotPrimary(Exception):
    """What only the primary may do was refused: this node is it no more."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What proves to the database that the primary is at work."""

    epoch: int
    token: UUID


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """The lease as the database has it; ``expired`` by the database's time."""

    epoch: int
    holder: NodeId
    token: UUID
    acquired_at: datetime
    expired: bool


READ = """
    SELECT epoch, holder, token, acquired_at, expires_at <= clock_timestamp() AS expired FROM lease
"""
ACQUIRE = "SELECT lease_acquire($1, $2, $3, $4)"
# One that has expired is not revived: somebody may have acted on its end.
RENEW = """
    UPDATE lease SET renewed_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => $2)
     WHERE token = $1 AND expires_at > clock_timestamp() RETURNING epoch
"""
RELEASE = """
    WITH released AS (
        UPDATE lease SET expires_at = clock_timestamp()
         WHERE token = $1 AND expires_at > clock_timestamp() RETURNING epoch
    )
    SELECT pg_notify('holdfast', 'lease') FROM released
"""
HOLDS = "SELECT reason FROM holds WHERE released_at IS NULL ORDER BY reason"
LOST_HISTORY = "SELECT place_hold('lost_history', $1)"


async def read(connection: asyncpg.Connection) -> LeaseRow | None:
    """Return the lease, None before the first primary."""
    row = await connection.fetchrow(READ)
    if row is None:
        return None
    return LeaseRow(row["epoch"], NodeId(row["holder"]), row["token"], row["acquired_at"], row["expired"])


async def acquire(
    connection: asyncpg.Connection, node: NodeId, token: UUID, *, known: int, seconds: float
) -> int | None:
    """Become the primary, under an epoch above ``known``; None while another node is. Raises ``OutcomeUnknown``."""
    epoch = await heed_standby(connection, connection.fetchval(ACQUIRE, node, token, known, seconds))
    return None if epoch is None else int(epoch)


async def renew(connection: asyncpg.Connection, token: UUID, *, seconds: float) -> int | None:
    """Stay the primary for ``seconds`` more; None when it is too late. Raises ``OutcomeUnknown``."""
    epoch = await heed_standby(connection, connection.fetchval(RENEW, token, seconds))
    return None if epoch is None else int(epoch)


async def release(connection: asyncpg.Connection, token: UUID) -> None:
    """End the lease now, and tell every node: a successor need not wait for its end."""
    await connection.execute(RELEASE, token)


async def holds(connection: asyncpg.Connection) -> tuple[str, ...]:
    """Return the reasons for which deletions are held."""
    return tuple(row["reason"] for row in await connection.fetch(HOLDS))


async def hold_lost_history(connection: asyncpg.Connection, detail: str) -> bool:
    """Hold every deletion, because a shard knows of a primary this database does not; False when held already."""
    return bool(await connection.fetchval(LOST_HISTORY, detail))
