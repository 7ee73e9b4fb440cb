"""API keys as rows: the tokens of a user by one description and one scope, of which one at a time is valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg

from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.pool import Database, Statement
from repo_node.db.principals import revoke_rest
from repo_node.origin import Origin


@dataclass(frozen=True, slots=True)
class Kind:
    """What an API key is told from other tokens by."""

    description: str
    scope: str


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key without its secret; ``parent`` is the token that makes it."""

    secret_sha256: bytes
    ending: str
    parent: int | None = None


VALID = """
    SELECT t.id, t.ending FROM tokens t JOIN users u ON u.id = t.user_id
     WHERE u.name = $1 AND t.description = $2 AND t.scopes = ARRAY[$3::text] AND t.revoked_at IS NULL
       AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp()) ORDER BY t.id
"""
FIND = Statement("api_key_find", VALID)
# One who changes a user's key after the other; tokens of theirs can be made and used meanwhile.
LOCK = "SELECT id FROM users WHERE name = $1 AND is_enabled FOR NO KEY UPDATE"
REVOKE = "SELECT revoke_tokens($1)"
# Held as by whoever makes another token.
LOCK_PARENT = """
    SELECT id FROM tokens WHERE id = $1 AND revoked_at IS NULL AND expires_at IS NULL FOR SHARE
"""
PARENT = "SELECT parent_id FROM tokens WHERE id = $1"
MAKE = Statement(
    "api_key_make",
    """
    INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes, parent_id)
    VALUES ($1, $2, $3, $4, ARRAY[$5::text], $6) RETURNING id
    """,
)
RECORD = """
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ($1, $2, $3, $4,
            jsonb_build_object('token', $5::bigint, 'user', $6::text, 'revoked', to_jsonb($7::bigint[])))
"""
REVOKE_ALL = Statement(
    "api_keys_revoke",
    """
    WITH gone AS MATERIALIZED (
        SELECT k.ids, revoke_tokens(k.ids) FROM (
            SELECT ARRAY(SELECT t.id FROM tokens t
                          WHERE t.description = $1 AND t.scopes = ARRAY[$2::text] AND t.revoked_at IS NULL
                            AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp()) ORDER BY t.id) AS ids
        ) AS k
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'token_revoke', $3, $4, $5, jsonb_build_object('revoked', to_jsonb(ids)) FROM gone
         WHERE cardinality(ids) > 0
    )
    SELECT ids FROM gone
    """,
)


async def find_ending(database: Database, user: str, kind: Kind) -> str | None:
    """Return the last characters of a user's key, None where they have none."""
    rows = await database.fetch(FIND, user, kind.description, kind.scope)
    return str(rows[-1]["ending"]) if rows else None


async def make(database: Database, user: str, kind: Kind, key: NewKey, *, replaces: bool, by: Origin) -> bool:
    """Make a user's key. One that is there ends where this ``replaces`` it; else nothing is done, and False.

    One that replaces itself was made by what made it: keys that are renewed for years are no line of them.
    """
    before: list[int] = []

    async def work(connection: asyncpg.Connection) -> bool:
        nonlocal before
        owner = await connection.fetchval(LOCK, user)
        if owner is None:
            # Gone since the request was let in; the next one will not be.
            raise CatalogueUnavailable(f"there is no enabled user {user} now")
        before = await valid(connection, user, kind)
        parent = await connection.fetchval(PARENT, key.parent) if key.parent in before else key.parent
        # From above, as whoever revokes them does.
        for token in dict.fromkeys((parent, key.parent)):
            if token is not None and await connection.fetchval(LOCK_PARENT, token) is None:
                raise CatalogueUnavailable("the token in use has ended")
        if before and not replaces:
            before = []
            return False
        await connection.execute(REVOKE, before)
        made: Any = await connection.fetchval(
            MAKE.sql, owner, key.secret_sha256, key.ending, kind.description, kind.scope, parent
        )
        await connection.execute(RECORD, "token_replace" if before else "token_create", *by, made, user, before)
        return True

    made = await database.transact(MAKE, work)
    if before:
        await revoke_rest(database, before, by=by)
    return made


async def revoke(database: Database, user: str, kind: Kind, *, by: Origin) -> bool:
    """End a user's key at once on every node; False where they have none."""

    async def work(connection: asyncpg.Connection) -> list[int]:
        await connection.fetchval(LOCK, user)
        if before := await valid(connection, user, kind):
            await connection.execute(REVOKE, before)
            await connection.execute(RECORD, "token_revoke", *by, before[-1], user, before)
        return before

    if not (before := await database.transact(FIND, work)):
        return False
    await revoke_rest(database, before, by=by)
    return True


async def revoke_all(database: Database, kind: Kind, *, by: Origin) -> int:
    """End the keys of all users at once on every node; return how many there were."""
    row: Any = await database.write(REVOKE_ALL, kind.description, kind.scope, *by)
    await revoke_rest(database, row["ids"], by=by)
    return len(row["ids"])


async def valid(connection: asyncpg.Connection, user: str, kind: Kind) -> list[int]:
    return [row["id"] for row in await connection.fetch(VALID, user, kind.description, kind.scope)]
