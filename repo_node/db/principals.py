"""Users and tokens as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin


@dataclass(frozen=True, slots=True)
class User:
    id: int
    name: str
    password_hash: str
    is_admin: bool
    must_change_password: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. ``user`` is whose rights it narrows by its scopes."""

    id: int
    user_id: int
    user: str
    is_admin: bool
    ending: str
    description: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    expires_in_seconds: float | None
    is_refreshable: bool


@dataclass(frozen=True, slots=True)
class Refreshable:
    """How a token is renewed: the digest of its refresh token, and how long that is good beyond the token's end."""

    secret_sha256: bytes
    kept: timedelta


class MadeToken(NamedTuple):
    """``expires_in_seconds``: None where it does not end."""

    id: int
    expires_in_seconds: int | None


GENERATIONS_MAX = 16
"""Tokens that made one another, one below the other: a revocation goes through them one by one."""

NO_PASSWORD = "!"
"""The hash of a password that cannot be: its user does not log in."""

FIND_USER = Statement(
    "user_find",
    "SELECT id, name, password_hash, is_admin, must_change_password FROM users WHERE name = $1 AND is_enabled",
)
TOKEN_COLUMNS = """
    t.id, t.user_id, u.name, u.is_admin, t.ending, t.description, t.scopes, t.created_at, t.expires_at,
    extract(epoch FROM t.expires_at - clock_timestamp())::double precision AS expires_in_seconds,
    t.refresh_sha256 IS NOT NULL AS is_refreshable
"""
# One whose end has come may be refreshed for a while.
LIVES = """
    t.revoked_at IS NULL AND (t.expires_at IS NULL OR greatest(t.expires_at, t.refreshable_until) > clock_timestamp())
"""
# OFFSET keeps the planner from taking the user first and then all tokens of that user: where both tables are nearly
# empty that looks as cheap, and the plan is kept while they grow.
FIND_TOKEN = Statement(
    "token_find",
    f"""
    SELECT {TOKEN_COLUMNS} FROM (SELECT * FROM tokens f WHERE f.secret_sha256 = $1 OFFSET 0) t
      JOIN users u ON u.id = t.user_id AND u.is_enabled AND NOT u.must_change_password
     WHERE t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())
    """,
)
LIST_TOKENS = Statement(
    "tokens_list",
    f"""
    SELECT {TOKEN_COLUMNS} FROM tokens t JOIN users u ON u.id = t.user_id
     WHERE {LIVES} ORDER BY t.id
    """,
)
LIST_TOKENS_OF = Statement(
    "tokens_list_of",
    f"""
    SELECT {TOKEN_COLUMNS} FROM tokens t JOIN users u ON u.id = t.user_id
     WHERE t.user_id = (SELECT o.id FROM users o WHERE o.name = $1) AND {LIVES} ORDER BY t.id
    """,
)
# The parent's row is held, so that whoever revokes it finds the new one, or there is none.
CREATE_TOKEN = Statement(
    "token_create",
    """
    WITH parent AS MATERIALIZED (
        SELECT p.id, p.expires_at FROM tokens p
         WHERE p.id = $10 AND p.revoked_at IS NULL AND (p.expires_at IS NULL OR p.expires_at > clock_timestamp())
           FOR SHARE
    ), times AS MATERIALIZED (
        SELECT c.now, (SELECT expires_at FROM parent) AS latest,
               least(c.now + $6::interval, (SELECT expires_at FROM parent)) AS expires_at
          FROM (SELECT clock_timestamp() AS now) AS c
    ), made AS (
        INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes, expires_at, parent_id,
                            lifetime, refresh_sha256, refreshable_until)
        SELECT u.id, $2, $3, $4, $5, s.expires_at, $10, CASE WHEN $11::bytea IS NOT NULL THEN $6::interval END, $11,
               CASE WHEN $11::bytea IS NOT NULL THEN least(s.expires_at + $12::interval, s.latest) END
          FROM users u, times s
         WHERE u.name = $1 AND u.is_enabled AND ($10::bigint IS NULL OR EXISTS (SELECT 1 FROM parent))
           FOR KEY SHARE OF u
        RETURNING id
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'token_create', $7, $8, $9,
               jsonb_strip_nulls(jsonb_build_object('token', id, 'user', $1::text, 'scopes', to_jsonb($5::text[]),
                                                    'parent', $10::bigint))
          FROM made
    )
    SELECT m.id, floor(extract(epoch FROM s.expires_at - s.now))::bigint AS seconds FROM made m, times s
    """,
)
FIND_TOKEN_BY_ID = Statement(
    "token_find_by_id",
    f"""
    SELECT {TOKEN_COLUMNS} FROM tokens t JOIN users u ON u.id = t.user_id
     WHERE t.id = $1 AND {LIVES}
    """,
)
REVOKE_TOKEN = Statement(
    "token_revoke",
    """
    WITH wanted AS (
        SELECT t.id FROM tokens t
         WHERE t.id = $1 AND t.revoked_at IS NULL
           AND ($5::text IS NULL OR t.user_id = (SELECT u.id FROM users u WHERE u.name = $5))
    ), gone AS MATERIALIZED (
        SELECT w.id, revoke_tokens(ARRAY[w.id]) AS ended FROM wanted w
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'token_revoke', $2, $3, $4,
               jsonb_strip_nulls(jsonb_build_object(
                   'token', id, 'revoked', CASE WHEN cardinality(ended) > 1 THEN to_jsonb(ended) END))
          FROM gone WHERE id = ANY (ended)
    )
    SELECT id FROM gone WHERE id = ANY (ended)
    """,
)
# One statement ends a bounded number: no deadline keeps a token valid because of what it has made.
REVOKE_REST = Statement(
    "token_revoke_rest",
    """
    WITH gone AS MATERIALIZED (SELECT revoke_tokens($1) AS ended)
    INSERT INTO events (kind, principal, request_id, address, detail)
    SELECT 'token_revoke', $2, $3, $4, jsonb_build_object('revoked', to_jsonb(ended)) FROM gone
     WHERE cardinality(ended) > 0
    RETURNING id
    """,
)
GENERATION = Statement(
    "token_generation",
    f"""
    WITH RECURSIVE line AS (
        SELECT t.parent_id, 1 AS generation FROM tokens t WHERE t.id = $1
        UNION ALL
        SELECT t.parent_id, l.generation + 1 FROM line l JOIN tokens t ON t.id = l.parent_id
         WHERE l.generation < {GENERATIONS_MAX}
    )
    SELECT coalesce(max(generation), 0) AS generation FROM line
    """,
)


async def find_user(database: Database, name: str) -> User | None:
    """Return the enabled user of that name, or None."""
    row = await database.fetchrow(FIND_USER, name)
    if row is None:
        return None
    return User(row["id"], row["name"], row["password_hash"], row["is_admin"], row["must_change_password"])


async def find_token(database: Database, secret_sha256: bytes) -> Token | None:
    """Return the token with that secret if it is valid now, or None."""
    row = await database.fetchrow(FIND_TOKEN, secret_sha256)
    return None if row is None else token_from(row)


async def list_tokens(database: Database, owner: str | None = None) -> list[Token]:
    """Return every token that is valid or can be refreshed, or every one of ``owner``."""
    rows = database.fetch(LIST_TOKENS) if owner is None else database.fetch(LIST_TOKENS_OF, owner)
    return [token_from(row) for row in await rows]


async def create_token(
    database: Database,
    user: str,
    *,
    secret_sha256: bytes,
    ending: str,
    description: str,
    scopes: Sequence[str],
    expires_in: timedelta | None,
    parent: int | None = None,
    refresh: Refreshable | None = None,
    by: Origin,
) -> MadeToken:
    """Record a new token of ``user``, which ends no later than its ``parent`` does, the token that makes it.

    One that is ``refreshable`` must end.
    """
    how = (None, None) if refresh is None else (refresh.secret_sha256, refresh.kept)
    row = await database.write(
        CREATE_TOKEN, user, secret_sha256, ending, description, list(scopes), expires_in, *by, parent, *how
    )
    if row is None:
        # Gone since the request was let in; the next one will not be.
        raise CatalogueUnavailable(f"there is no enabled user {user} now, or the token in use has ended")
    return MadeToken(row["id"], row["seconds"])


async def find_token_by_id(database: Database, token: int) -> Token | None:
    """Return a token by its id while it is valid or can be refreshed, or None."""
    row = await database.fetchrow(FIND_TOKEN_BY_ID, token)
    return None if row is None else token_from(row)


async def revoke_token(database: Database, token: int, *, by: Origin, owner: str | None = None) -> bool:
    """Revoke a token, of ``owner`` or of anybody, and those it made, at once on every node; False: there is none."""
    if await database.write(REVOKE_TOKEN, token, *by, owner) is None:
        return False
    await revoke_rest(database, [token], by=by)
    return True


async def revoke_rest(database: Database, tokens: Sequence[int], *, by: Origin) -> None:
    """Revoke what tokens have made, in steps, when they are revoked themselves."""
    while await database.write(REVOKE_REST, list(tokens), *by) is not None:
        pass


async def find_generation(database: Database, token: int) -> int:
    """Return how many tokens made one another down to this one, itself included; ``GENERATIONS_MAX`` is the most."""
    [row] = await database.fetch(GENERATION, token)
    return int(row["generation"])


def token_from(row: Any) -> Token:
    return Token(
        id=row["id"],
        user_id=row["user_id"],
        user=row["name"],
        is_admin=row["is_admin"],
        ending=row["ending"],
        description=row["description"],
        scopes=tuple(row["scopes"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        expires_in_seconds=row["expires_in_seconds"],
        is_refreshable=row["is_refreshable"],
    )
