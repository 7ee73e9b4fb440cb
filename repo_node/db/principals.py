"""Users and tokens as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

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


NO_PASSWORD = "!"
"""The hash of a password that cannot be: its user does not log in."""

FIND_USER = Statement(
    "user_find",
    "SELECT id, name, password_hash, is_admin, must_change_password FROM users WHERE name = $1 AND is_enabled",
)
TOKEN_COLUMNS = """
    t.id, t.user_id, u.name, u.is_admin, t.ending, t.description, t.scopes, t.created_at, t.expires_at,
    extract(epoch FROM t.expires_at - clock_timestamp())::double precision AS expires_in_seconds
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
     WHERE t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())
     ORDER BY t.id
    """,
)
LIST_TOKENS_OF = Statement(
    "tokens_list_of",
    f"""
    SELECT {TOKEN_COLUMNS} FROM tokens t JOIN users u ON u.id = t.user_id
     WHERE t.user_id = (SELECT o.id FROM users o WHERE o.name = $1)
       AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())
     ORDER BY t.id
    """,
)
CREATE_TOKEN = Statement(
    "token_create",
    """
    WITH made AS (
        INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes, expires_at)
        SELECT u.id, $2, $3, $4, $5, clock_timestamp() + $6::interval
          FROM users u WHERE u.name = $1 AND u.is_enabled FOR KEY SHARE
        RETURNING id
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'token_create', $7, $8, $9,
               jsonb_build_object('token', id, 'user', $1::text, 'scopes', to_jsonb($5::text[]))
          FROM made
    )
    SELECT id FROM made
    """,
)
FIND_TOKEN_BY_ID = Statement(
    "token_find_by_id",
    f"""
    SELECT {TOKEN_COLUMNS} FROM tokens t JOIN users u ON u.id = t.user_id
     WHERE t.id = $1 AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())
    """,
)
REVOKE_TOKEN = Statement(
    "token_revoke",
    """
    WITH gone AS (
        UPDATE tokens t SET revoked_at = clock_timestamp()
         WHERE t.id = $1 AND t.revoked_at IS NULL
           AND ($5::text IS NULL OR t.user_id = (SELECT u.id FROM users u WHERE u.name = $5))
        RETURNING t.id
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'token_revoke', $2, $3, $4, jsonb_build_object('token', id) FROM gone
    )
    SELECT id FROM gone
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
    """Return every valid token, or every one of ``owner``."""
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
    by: Origin,
) -> int:
    """Record a new token of ``user`` and return its id."""
    row = await database.write(CREATE_TOKEN, user, secret_sha256, ending, description, list(scopes), expires_in, *by)
    if row is None:
        # Gone since the request was let in; the next one will not be.
        raise CatalogueUnavailable(f"there is no enabled user {user} now")
    return int(row["id"])


async def find_token_by_id(database: Database, token: int) -> Token | None:
    """Return a valid token by its id, or None."""
    row = await database.fetchrow(FIND_TOKEN_BY_ID, token)
    return None if row is None else token_from(row)


async def revoke_token(database: Database, token: int, *, by: Origin, owner: str | None = None) -> bool:
    """Revoke a token, of ``owner`` or of anybody, at once on every node; False when there is no such valid token."""
    return await database.write(REVOKE_TOKEN, token, *by, owner) is not None


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
    )
