"""Wrong logins, counted for all nodes together: by the name that was given, and by the address they came from.

A name that no user has may be a password that was typed at the wrong place: it is counted by a disguise, which only
whoever has the cluster's key makes of it. Rows are few: a count is forgotten when there was no further failure for as
long as a lock lasts, and each failure takes forgotten rows away. Whoever is locked out is not counted any more, since
their passwords are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin

NAME_CHARACTERS_MAX = 64
"""Longer names are cut: no user has one."""

SWEPT = 100


@dataclass(frozen=True, slots=True)
class Standing:
    """How a login stands before its password is looked at."""

    is_locked: bool
    has_failed: bool


def counted_by(disguise: str) -> str:
    """Return what the name ``$1`` is counted by, itself only where a user has it."""
    return f"CASE WHEN EXISTS (SELECT 1 FROM users u WHERE u.name = $1) THEN $1 ELSE {disguise} END"


STANDING = Statement(
    "login_standing",
    f"""
    SELECT count(*) FILTER (WHERE l.most > 0 AND f.failures >= l.most
                                  AND f.last_at > clock_timestamp() - $5::interval) > 0 AS is_locked,
           count(*) FILTER (WHERE f.kind = 'user') > 0 AS has_failed
      FROM (VALUES ('user', {counted_by("$6")}, $3::integer), ('address', $2, $4::integer)) AS l (kind, name, most)
      JOIN login_failures f ON f.kind = l.kind AND f.name = l.name
    """,
)
FAILED = Statement(
    "login_failed",
    f"""
    WITH who AS MATERIALIZED (SELECT {counted_by("$4")} AS name), forgotten AS (
        DELETE FROM login_failures f USING (
            SELECT kind, name FROM login_failures WHERE last_at < clock_timestamp() - $3::interval
             ORDER BY last_at LIMIT {SWEPT} FOR UPDATE SKIP LOCKED
        ) AS old
         WHERE f.kind = old.kind AND f.name = old.name AND (f.kind, f.name) <> ('address', $2)
           AND NOT (f.kind = 'user' AND f.name = (SELECT name FROM who))
    )
    INSERT INTO login_failures AS f (kind, name) SELECT kind, name
      FROM (VALUES ('address', $2), ('user', (SELECT name FROM who))) AS v (kind, name) ORDER BY kind, name
    ON CONFLICT (kind, name) DO UPDATE
       SET failures = CASE WHEN f.last_at < clock_timestamp() - $3::interval THEN 1 ELSE f.failures + 1 END,
           last_at = clock_timestamp()
    """,
)
SUCCEEDED = Statement("login_succeeded", "DELETE FROM login_failures WHERE kind = 'user' AND name = $1")
LOCKED = Statement(
    "logins_locked",
    """
    SELECT f.name FROM login_failures f JOIN users u ON u.name = f.name
     WHERE f.kind = 'user' AND $1 > 0 AND f.failures >= $1 AND f.last_at > clock_timestamp() - $2::interval
     ORDER BY f.name
    """,
)
# Only users are told of: a name that nobody has may be a password that was typed at the wrong place.
UNLOCK = Statement(
    "logins_unlock",
    """
    WITH gone AS (
        DELETE FROM login_failures WHERE $1::text[] IS NULL OR (kind = 'user' AND name = ANY ($1)) RETURNING kind, name
    )
    INSERT INTO events (kind, principal, request_id, address, detail)
    SELECT 'user_unlock', $2, $3, $4,
           jsonb_build_object('names', coalesce(jsonb_agg(u.name ORDER BY u.name) FILTER (WHERE u.name IS NOT NULL),
                                                '[]'), 'all', $1 IS NULL)
      FROM gone LEFT JOIN users u ON gone.kind = 'user' AND u.name = gone.name HAVING count(*) > 0
    """,
)


async def standing(
    database: Database,
    user: str,
    address: str,
    *,
    disguise: str,
    user_max: int,
    address_max: int,
    lock_seconds: float,
) -> Standing:
    """Return how a login stands; a limit of 0 locks nobody out. ``disguise`` counts where nobody is called ``user``."""
    lock = timedelta(seconds=lock_seconds)
    [row] = await database.fetch(STANDING, user[:NAME_CHARACTERS_MAX], address, user_max, address_max, lock, disguise)
    return Standing(row["is_locked"], row["has_failed"])


async def note_failure(database: Database, user: str, address: str, *, disguise: str, lock_seconds: float) -> None:
    """Count a wrong login, by ``disguise`` where nobody is called ``user``."""
    lock = timedelta(seconds=lock_seconds)
    await database.write(FAILED, user[:NAME_CHARACTERS_MAX], address, lock, disguise)


async def note_success(database: Database, user: str) -> None:
    """Forget the wrong logins of a user who has proved who they are."""
    await database.write(SUCCEEDED, user)


async def list_locked(database: Database, *, user_max: int, lock_seconds: float) -> list[str]:
    """Return the users who are locked out now."""
    return [row["name"] for row in await database.fetch(LOCKED, user_max, timedelta(seconds=lock_seconds))]


async def unlock(database: Database, users: list[str] | None, *, by: Origin) -> None:
    """Let these users log in again; None: all of them, and from every address."""
    await database.write(UNLOCK, users, *by)
