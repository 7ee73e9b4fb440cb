"""Permission targets as rows: which users and groups have which actions, in which repositories, where paths fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from repo_node.db.pool import Database, Statement
from repo_node.db.users import NameTaken, NoSuchName, UnknownName
from repo_node.origin import Origin

Actions = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A permission target; ``users`` and ``groups`` are names, each with its actions."""

    name: str
    repositories: Sequence[str]
    includes: Sequence[str]
    excludes: Sequence[str]
    users: Actions
    groups: Actions


LIST = Statement("permission_targets_list", "SELECT name FROM permission_targets ORDER BY name")
MANAGED = Statement(
    "permission_targets_managed",
    """
    SELECT DISTINCT t.name FROM permission_targets t JOIN permission_grants g ON g.target_id = t.id
      LEFT JOIN users u ON u.id = g.user_id
     WHERE 'manage' = ANY (g.actions)
       AND (u.name = $1 OR EXISTS (SELECT 1 FROM group_members m JOIN users o ON o.id = m.user_id
                                    WHERE m.group_id = g.group_id AND o.name = $1))
     ORDER BY 1
    """,
)
FIND = Statement(
    "permission_target_find",
    """
    SELECT t.name, t.repositories, t.includes, t.excludes,
           (SELECT coalesce(jsonb_object_agg(u.name, g.actions), '{}')
              FROM permission_grants g JOIN users u ON u.id = g.user_id WHERE g.target_id = t.id) AS users,
           (SELECT coalesce(jsonb_object_agg(p.name, g.actions), '{}')
              FROM permission_grants g JOIN groups p ON p.id = g.group_id WHERE g.target_id = t.id) AS groups
      FROM permission_targets t WHERE t.name = $1
    """,
)
LOCK = "LOCK TABLE permission_targets IN SHARE ROW EXCLUSIVE MODE"
SAVE = Statement(
    "permission_target_save",
    """
    INSERT INTO permission_targets (name, repositories, includes, excludes) VALUES ($1, $2, $3, $4)
    ON CONFLICT (name) DO UPDATE
       SET repositories = excluded.repositories, includes = excluded.includes, excludes = excluded.excludes
    RETURNING id, xmax = 0 AS made
    """,
)
CLEAR = "DELETE FROM permission_grants WHERE target_id = $1"
GRANT_USERS = """
    INSERT INTO permission_grants (target_id, user_id, actions)
    SELECT $1, u.id, ARRAY(SELECT jsonb_array_elements_text(g.value)) FROM jsonb_each($2::jsonb) g
      JOIN users u ON u.name = g.key FOR KEY SHARE OF u RETURNING user_id
"""
GRANT_GROUPS = """
    INSERT INTO permission_grants (target_id, group_id, actions)
    SELECT $1, p.id, ARRAY(SELECT jsonb_array_elements_text(g.value)) FROM jsonb_each($2::jsonb) g
      JOIN groups p ON p.name = g.key FOR KEY SHARE OF p RETURNING group_id
"""
RECORD = """
    INSERT INTO events (kind, principal, request_id, address, detail) VALUES ($1, $2, $3, $4, $5::jsonb)
"""
DELETE = Statement(
    "permission_target_delete",
    """
    WITH gone AS (DELETE FROM permission_targets WHERE name = $1 RETURNING name), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'permission_delete', $2, $3, $4, jsonb_build_object('name', name) FROM gone
    )
    SELECT name FROM gone
    """,
)


async def list_names(database: Database, managed_by: str | None = None) -> list[str]:
    """Return the names of all permission targets, or of those a user may manage."""
    rows = await (database.fetch(LIST) if managed_by is None else database.fetch(MANAGED, managed_by))
    return [row["name"] for row in rows]


async def find(database: Database, name: str) -> Target | None:
    """Return a permission target, or None."""
    row = await database.fetchrow(FIND, name)
    return None if row is None else target_from(row)


def target_from(row: asyncpg.Record) -> Target:
    places = (row["repositories"], row["includes"], row["excludes"])
    return Target(row["name"], *places, json.loads(row["users"]), json.loads(row["groups"]))


async def save(
    database: Database,
    target: Target,
    *,
    by: Origin,
    is_new: bool | None = None,
    check: Callable[[Target | None], object] = lambda before: None,
) -> bool:
    """Make a permission target or replace one; return whether it was made. ``check`` sees the one before, and refuses.

    Raises ``UnknownName``, ``NoSuchName``, ``NameTaken``.
    """

    async def work(connection: asyncpg.Connection) -> bool:
        await connection.execute(LOCK)
        row = await connection.fetchrow(FIND.sql, target.name)
        check(None if row is None else target_from(row))
        made: Any = await connection.fetchrow(
            SAVE.sql, target.name, list(target.repositories), list(target.includes), list(target.excludes)
        )
        if is_new is not None and made["made"] is not is_new:
            raise NameTaken(target.name) if is_new else NoSuchName(f"There is no permission target {target.name}.")
        await connection.execute(CLEAR, made["id"])
        for sql, actions, kind in ((GRANT_USERS, target.users, "user"), (GRANT_GROUPS, target.groups, "group")):
            given = {name: sorted(set(what)) for name, what in actions.items() if what}
            if len(await connection.fetch(sql, made["id"], json.dumps(given))) < len(given):
                raise UnknownName(f"There is no such {kind} among {', '.join(sorted(given))}.")
        document = {"name": target.name, "users": dict(target.users), "groups": dict(target.groups)}
        kind = "permission_create" if made["made"] else "permission_change"
        await connection.execute(RECORD, kind, *by, json.dumps(document))
        return bool(made["made"])

    return await database.transact(SAVE, work)


async def delete(database: Database, name: str, *, by: Origin) -> bool:
    """Delete a permission target; False when there is none."""
    return await database.write(DELETE, name, *by) is not None
