"""Groups of users as rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from repo_node.db.pool import Database, Statement
from repo_node.db.users import RECORD, NameTaken, NoSuchName, UnknownName
from repo_node.origin import Origin


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    description: str
    auto_join: bool
    members: tuple[str, ...]


LIST = Statement("groups_list", "SELECT name FROM groups ORDER BY name")
FIND = Statement(
    "group_find",
    """
    SELECT g.name, g.description, g.auto_join,
           ARRAY(SELECT u.name FROM group_members m JOIN users u ON u.id = m.user_id
                  WHERE m.group_id = g.id ORDER BY u.name) AS members
      FROM groups g WHERE g.name = $1
    """,
)
SAVE = Statement(
    "group_save",
    """
    INSERT INTO groups AS g (name, description, auto_join) VALUES ($1, coalesce($2, ''), coalesce($3, false))
    ON CONFLICT (name) DO UPDATE
       SET description = coalesce($2, g.description), auto_join = coalesce($3, g.auto_join)
    RETURNING g.id, xmax = 0 AS made
    """,
)
UNKNOWN_USER = "SELECT min(n) FROM unnest($1::text[]) AS n WHERE NOT EXISTS (SELECT 1 FROM users WHERE name = n)"
REMOVE = """
    DELETE FROM group_members WHERE group_id = $1 AND user_id NOT IN (SELECT id FROM users WHERE name = ANY ($2))
    RETURNING (SELECT name FROM users WHERE id = user_id)
"""
ADD = """
    INSERT INTO group_members (user_id, group_id) SELECT id, $1 FROM users WHERE name = ANY ($2) FOR KEY SHARE
    ON CONFLICT DO NOTHING
    RETURNING (SELECT name FROM users WHERE id = user_id)
"""
DELETE = Statement(
    "group_delete",
    """
    WITH gone AS (DELETE FROM groups WHERE name = $1 RETURNING name), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'group_delete', $2, $3, $4, jsonb_build_object('name', name) FROM gone
    )
    SELECT name FROM gone
    """,
)


async def list_names(database: Database) -> list[str]:
    """Return the names of all groups."""
    return [row["name"] for row in await database.fetch(LIST)]


async def find(database: Database, name: str) -> Group | None:
    """Return a group with its members, or None."""
    row = await database.fetchrow(FIND, name)
    return None if row is None else Group(row["name"], row["description"], row["auto_join"], tuple(row["members"]))


async def save(
    database: Database,
    name: str,
    *,
    description: str | None,
    auto_join: bool | None,
    members: Sequence[str] | None,
    by: Origin,
    is_new: bool | None = None,
) -> bool:
    """Make or change a group; return whether it was made. None leaves as it is, or is the default of a new one.

    Raises ``UnknownName`` for a member, ``NoSuchName``, ``NameTaken``.
    """

    async def work(connection: asyncpg.Connection) -> bool:
        told: dict[str, Any] = {"name": name}
        row: Any = await connection.fetchrow(SAVE.sql, name, description, auto_join)
        if is_new is not None and row["made"] is not is_new:
            raise NameTaken(name) if is_new else NoSuchName(f"There is no group {name}.")
        if members is not None:
            unknown = await connection.fetchval(UNKNOWN_USER, list(members))
            if unknown is not None:
                raise UnknownName(f"There is no user {unknown}.")
            for what, sql in (("left", REMOVE), ("joined", ADD)):
                told[what] = sorted(one[0] for one in await connection.fetch(sql, row["id"], list(members)))
        if auto_join is not None:
            told["auto_join"] = auto_join
        await connection.execute(RECORD, "group_create" if row["made"] else "group_change", *by, json.dumps(told))
        return bool(row["made"])

    return await database.transact(SAVE, work)


async def delete(database: Database, name: str, *, by: Origin) -> bool:
    """Delete a group with its rights; False when there is none."""
    return await database.write(DELETE, name, *by) is not None
