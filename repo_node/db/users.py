"""Users as people administer them: who they are, their groups, and their passwords' hashes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement
from repo_node.db.principals import NO_PASSWORD
from repo_node.origin import Origin


class UnknownName(CatalogueError):
    """There is no user, or no group, of that name; the message says which."""


class NoSuchName(UnknownName):
    """What a request is for is not there."""


class NameTaken(CatalogueError):
    """There is something of that name already; the message is the name."""


class LastAdministrator(CatalogueError):
    """Nobody would be an administrator any more."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user without their password."""

    id: int
    name: str
    email: str
    is_admin: bool
    is_enabled: bool
    has_password: bool
    must_change_password: bool
    created_at: datetime
    password_changed_at: datetime
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccountChanges:
    """What is to be of a user; None leaves as it is, or as it is by default where they are new."""

    email: str | None = None
    password_hash: str | None = None
    is_admin: bool | None = None
    is_enabled: bool | None = None
    must_change_password: bool | None = None
    groups: Sequence[str] | None = None

    def told(self) -> dict[str, Any]:
        """Return what the event of these changes tells: of a password, that there is another one."""
        told = {
            "email": self.email,
            "password": None if self.password_hash is None else self.password_hash != NO_PASSWORD,
            "admin": self.is_admin,
            "enabled": self.is_enabled,
            "must_change_password": self.must_change_password,
            "groups": None if self.groups is None else list(self.groups),
        }
        return {key: value for key, value in told.items() if value is not None}


LIST = Statement("users_list", "SELECT name FROM users ORDER BY name")
FIND = Statement(
    "user_account",
    f"""
    SELECT u.id, u.name, u.email, u.is_admin, u.is_enabled, u.password_hash <> '{NO_PASSWORD}' AS has_password,
           u.must_change_password, u.created_at, u.password_changed_at,
           ARRAY(SELECT g.name FROM group_members m JOIN groups g ON g.id = m.group_id
                  WHERE m.user_id = u.id ORDER BY g.name) AS groups
      FROM users u WHERE u.name = $1
    """,
)
# One who changes users after the other: there is always an administrator.
LOCK = "LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"
SAVE = Statement(
    "user_save",
    f"""
    INSERT INTO users AS u (name, email, password_hash, is_admin, is_enabled, must_change_password)
    VALUES ($1, coalesce($2, ''), coalesce($3, '{NO_PASSWORD}'), coalesce($4, false), coalesce($5, true),
            coalesce($6, false))
    ON CONFLICT (name) DO UPDATE
       SET email = coalesce($2, u.email), password_hash = coalesce($3, u.password_hash),
           is_admin = coalesce($4, u.is_admin), is_enabled = coalesce($5, u.is_enabled),
           must_change_password = coalesce($6, u.must_change_password),
           password_changed_at = CASE WHEN $3 IS NULL THEN u.password_changed_at ELSE now() END
    RETURNING u.id, xmax = 0 AS made
    """,
)
# Where rows refer to others by name, these are kept as they are: one that is being deleted is waited for, and left out.
HAS_ADMIN = "SELECT EXISTS (SELECT 1 FROM users WHERE is_admin AND is_enabled)"
AUTO_JOIN = """
    INSERT INTO group_members (user_id, group_id)
    SELECT $1, id FROM groups WHERE auto_join FOR KEY SHARE ON CONFLICT DO NOTHING
"""
LEAVE = """
    DELETE FROM group_members WHERE user_id = $1 AND group_id NOT IN (SELECT id FROM groups WHERE name = ANY ($2))
"""
JOIN = """
    INSERT INTO group_members (user_id, group_id)
    SELECT $1, id FROM groups WHERE name = ANY ($2) FOR KEY SHARE ON CONFLICT DO NOTHING
"""
UNKNOWN_GROUP = """
    SELECT min(n) FROM unnest($1::text[]) AS n WHERE NOT EXISTS (SELECT 1 FROM groups WHERE name = n)
"""
RECORD = """
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ($1, $2, $3, $4, $5::jsonb)
"""
# Whoever makes a token at this moment is waited for; who comes later finds nobody.
LOCK_ONE = "SELECT FROM users WHERE name = $1 FOR UPDATE"
REVOKE_TOKENS = """
    SELECT cardinality(revoke_tokens(
        ARRAY(SELECT t.id FROM tokens t JOIN users u ON u.id = t.user_id WHERE u.name = $1)))
"""
DELETE_TOKENS = """
    WITH RECURSIVE gone AS (
        SELECT t.id FROM tokens t JOIN users u ON u.id = t.user_id WHERE u.name = $1
        UNION
        SELECT c.id FROM gone g JOIN tokens c ON c.parent_id = g.id
    )
    DELETE FROM tokens WHERE id IN (SELECT id FROM gone)
"""
DELETE = Statement("user_delete", "DELETE FROM users WHERE name = $1 RETURNING id")
SET_PASSWORD = Statement(
    "user_set_password",
    """
    WITH changed AS (
        UPDATE users SET password_hash = $3, password_changed_at = now(), must_change_password = false
         WHERE name = $1 AND password_hash = $2 RETURNING name
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'password_change', $4, $5, $6, jsonb_build_object('name', name) FROM changed
    )
    SELECT name FROM changed
    """,
)
# Not another password: the one of this moment, if it still is.
RENEW_HASH = Statement(
    "user_renew_hash",
    """
    WITH renewed AS (
        UPDATE users SET password_hash = $3 WHERE name = $1 AND password_hash = $2 RETURNING name
    )
    INSERT INTO events (kind, principal, request_id, detail)
    SELECT 'password_rehash', 'holdfast', '', jsonb_build_object('name', name) FROM renewed RETURNING id
    """,
)


async def list_names(database: Database) -> list[str]:
    """Return the names of all users."""
    return [row["name"] for row in await database.fetch(LIST)]


async def find(database: Database, name: str) -> Account | None:
    """Return a user, or None."""
    row = await database.fetchrow(FIND, name)
    return None if row is None else Account(**{**row, "groups": tuple(row["groups"])})


async def save(
    database: Database, name: str, changes: AccountChanges, *, by: Origin, is_new: bool | None = None
) -> bool:
    """Make or change a user; return whether they were made. ``is_new`` says what they have to be.

    Raises ``UnknownName`` for a group, ``NoSuchName``, ``NameTaken``, ``LastAdministrator``.
    """

    async def work(connection: asyncpg.Connection) -> bool:
        await connection.execute(LOCK)
        row: Any = await connection.fetchrow(
            SAVE.sql,
            name,
            changes.email,
            changes.password_hash,
            changes.is_admin,
            changes.is_enabled,
            changes.must_change_password,
        )
        if is_new is not None and row["made"] is not is_new:
            raise NameTaken(name) if is_new else NoSuchName(f"There is no user {name}.")
        if not await connection.fetchval(HAS_ADMIN):
            raise LastAdministrator(name)
        if row["made"]:
            await connection.execute(AUTO_JOIN, row["id"])
        if changes.groups is not None:
            await set_groups(connection, row["id"], changes.groups, keep=row["made"])
        told = json.dumps({"name": name, **changes.told()})
        await connection.execute(RECORD, "user_create" if row["made"] else "user_change", *by, told)
        return bool(row["made"])

    return await database.transact(SAVE, work)


async def set_groups(connection: asyncpg.Connection, user: int, groups: Sequence[str], *, keep: bool) -> None:
    """Make a user a member of these groups, and of no others unless ``keep``. Raises ``UnknownName``."""
    unknown = await connection.fetchval(UNKNOWN_GROUP, list(groups))
    if unknown is not None:
        raise UnknownName(f"There is no group {unknown}.")
    if not keep:
        await connection.execute(LEAVE, user, list(groups))
    await connection.execute(JOIN, user, list(groups))


async def delete(database: Database, name: str, *, by: Origin) -> bool:
    """Delete a user with their rights, their tokens and what these made; False when there is none.

    Raises ``LastAdministrator``.
    """

    async def work(connection: asyncpg.Connection) -> bool:
        await connection.execute(LOCK)
        await connection.execute(LOCK_ONE, name)
        # Those that theirs made for others go too; revoked first, none of them makes another one meanwhile.
        while await connection.fetchval(REVOKE_TOKENS, name):
            pass
        await connection.execute(DELETE_TOKENS, name)
        if await connection.fetchval(DELETE.sql, name) is None:
            return False
        if not await connection.fetchval(HAS_ADMIN):
            raise LastAdministrator(name)
        await connection.execute(RECORD, "user_delete", *by, json.dumps({"name": name}))
        return True

    return await database.transact(DELETE, work)


async def set_password(database: Database, name: str, *, old_hash: str, new_hash: str, by: Origin) -> bool:
    """Give a user another password of their own choice; False when it is not ``old_hash`` any more."""
    return await database.write(SET_PASSWORD, name, old_hash, new_hash, *by) is not None


async def renew_hash(database: Database, name: str, *, old_hash: str, new_hash: str) -> bool:
    """Store another hash of the same password; False when ``old_hash`` is not the one that is stored any more."""
    return await database.write(RENEW_HASH, name, old_hash, new_hash) is not None
