"""Refresh tokens as rows: a token keeps its id, its rights and what it made, and gets other secrets and a later end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg

from repo_node.db.pool import Database, Statement
from repo_node.db.principals import LIVES, revoke_rest
from repo_node.origin import Origin


@dataclass(frozen=True, slots=True)
class NewSecrets:
    """What a token gets by a refresh; the secrets as their digests."""

    secret_sha256: bytes
    ending: str
    refresh_sha256: bytes
    kept: timedelta
    """How long the refresh token is good beyond the token's end."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A token as it is now."""

    id: int
    user: str
    scopes: tuple[str, ...]
    expires_in_seconds: int


# Of two who bring one refresh token, the second finds another one here when the first is done. The user is looked up
# by the token found, in whatever order a join would be planned while the tables are small.
FIND = Statement(
    "refresh_token_find",
    """
    SELECT t.id, t.scopes, (SELECT u.name FROM users u
                             WHERE u.id = t.user_id AND u.is_enabled AND NOT u.must_change_password) AS "user"
      FROM tokens t
     WHERE t.refresh_sha256 = $1 AND t.revoked_at IS NULL AND t.refreshable_until > clock_timestamp()
       AND ($2::bytea IS NULL OR t.secret_sha256 = $2)
       FOR NO KEY UPDATE
    """,
)
RENEW = Statement(
    "refresh_token_use",
    """
    WITH used AS (INSERT INTO used_refresh_tokens (sha256, token_id) VALUES ($2, $1)), times AS MATERIALIZED (
        SELECT c.now, p.expires_at AS latest, least(c.now + t.lifetime, p.expires_at) AS expires_at
          FROM tokens t LEFT JOIN tokens p ON p.id = t.parent_id, (SELECT clock_timestamp() AS now) AS c WHERE t.id = $1
    )
    UPDATE tokens t SET secret_sha256 = $3, ending = $4, refresh_sha256 = $5, expires_at = s.expires_at,
                        refreshable_until = least(s.expires_at + $6::interval, s.latest)
      FROM times s WHERE t.id = $1
    RETURNING floor(extract(epoch FROM s.expires_at - s.now))::bigint AS seconds
    """,
)
RECORD = """
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('token_refresh', $1, $2, $3, jsonb_build_object('token', $4::bigint, 'user', $1::text))
"""
# Whoever has it may be the thief or the one it was stolen from: it ends for both.
REVOKE_USED = Statement(
    "refresh_token_used_again",
    """
    WITH gone AS MATERIALIZED (
        SELECT r.token_id, revoke_tokens(ARRAY[r.token_id]) AS ended FROM used_refresh_tokens r
         WHERE r.sha256 = $1 AND (SELECT t.revoked_at FROM tokens t WHERE t.id = r.token_id) IS NULL
    )
    INSERT INTO events (kind, principal, request_id, address, detail)
    SELECT 'token_revoke', $2, $3, $4,
           jsonb_build_object('token', token_id, 'revoked', to_jsonb(ended), 'reason', 'a refresh token was used twice')
      FROM gone WHERE cardinality(ended) > 0
    RETURNING (detail->>'token')::bigint AS id
    """,
)
FIND_ID = Statement(
    "token_find_by_any_secret",
    f"""
    SELECT t.id FROM tokens t WHERE t.secret_sha256 = $1 AND {LIVES}
    UNION ALL SELECT t.id FROM tokens t WHERE t.refresh_sha256 = $1 AND {LIVES}
    """,
)


async def refresh(
    database: Database, refresh_sha256: bytes, new: NewSecrets, *, secret_sha256: bytes | None, by: Origin
) -> Refreshed | None:
    """Give a token the secrets ``new`` in place of those it has; None for who brings none that is good.

    ``secret_sha256`` is of the token that the client says it is of. Raises ``OutcomeUnknown``.
    """

    async def work(connection: asyncpg.Connection) -> Refreshed | None:
        row: Any = await connection.fetchrow(FIND.sql, refresh_sha256, secret_sha256)
        if row is None or row["user"] is None:
            return None
        seconds: Any = await connection.fetchval(
            RENEW.sql, row["id"], refresh_sha256, new.secret_sha256, new.ending, new.refresh_sha256, new.kept
        )
        await connection.execute(RECORD, row["user"], by.request_id, by.address, row["id"])
        return Refreshed(row["id"], row["user"], tuple(row["scopes"]), seconds)

    return await database.transact(RENEW, work)


async def revoke_used(database: Database, refresh_sha256: bytes, *, by: Origin) -> int | None:
    """Revoke the token that a refresh token was once used for, and what it made; return its id if there was one."""
    row = await database.write(REVOKE_USED, refresh_sha256, *by)
    if row is None:
        return None
    await revoke_rest(database, [row["id"]], by=by)
    return int(row["id"])


async def find_token_id(database: Database, sha256: bytes) -> int | None:
    """Return the id of the token with that secret or refresh token, while it is valid or can be refreshed."""
    row = await database.fetchrow(FIND_ID, sha256)
    return None if row is None else int(row["id"])
