"""What permission targets give a user or groups, as it is loaded when somebody is proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repo_node.db.pool import Database, Statement


@dataclass(frozen=True, slots=True)
class GrantRow:
    """Actions that a permission target gives, and where."""

    repositories: tuple[str, ...]
    includes: tuple[str, ...]
    excludes: tuple[str, ...]
    actions: tuple[str, ...]


COLUMNS = "t.repositories, t.includes, t.excludes, g.actions"
OF_USER = Statement(
    "rights_of_user",
    f"""
    SELECT {COLUMNS} FROM permission_grants g JOIN permission_targets t ON t.id = g.target_id WHERE g.user_id = $1
    UNION ALL
    SELECT {COLUMNS} FROM group_members m JOIN permission_grants g ON g.group_id = m.group_id
      JOIN permission_targets t ON t.id = g.target_id WHERE m.user_id = $1
    """,
)
OF_GROUPS = Statement(
    "rights_of_groups",
    f"""
    SELECT {COLUMNS} FROM groups p JOIN permission_grants g ON g.group_id = p.id
      JOIN permission_targets t ON t.id = g.target_id
     WHERE p.name = ANY ($2::text[])
       AND ($3 OR EXISTS (SELECT 1 FROM group_members m WHERE m.user_id = $1 AND m.group_id = p.id))
    """,
)


@dataclass(frozen=True, slots=True)
class NamedGrant:
    """What a permission target gives to one user, or to one group."""

    name: str
    is_group: bool
    grant: GrantRow


IN_REPOSITORY = Statement(
    "rights_in_repository",
    f"""
    SELECT coalesce(u.name, p.name) AS name, u.name IS NULL AS is_group, {COLUMNS}
      FROM permission_targets t JOIN permission_grants g ON g.target_id = t.id
      LEFT JOIN users u ON u.id = g.user_id LEFT JOIN groups p ON p.id = g.group_id
     WHERE t.repositories && ARRAY[$1, 'ANY', 'ANY LOCAL', 'ANY REMOTE'] ORDER BY 2, 1
    """,
)


async def in_repository(database: Database, repository: str) -> list[NamedGrant]:
    """Return what anybody may have in a repository, by their own name or a group's."""
    rows = await database.fetch(IN_REPOSITORY, repository)
    return [NamedGrant(row["name"], row["is_group"], grant_from(tuple(row)[2:])) for row in rows]


async def of_user(database: Database, user: int) -> list[GrantRow]:
    """Return what a user has by themselves and by their groups."""
    return [grant_from(row) for row in await database.fetch(OF_USER, user)]


async def of_groups(database: Database, user: int, groups: Sequence[str], *, member_or_not: bool) -> list[GrantRow]:
    """Return what these groups have; without ``member_or_not``, only those that the user belongs to."""
    return [grant_from(row) for row in await database.fetch(OF_GROUPS, user, list(groups), member_or_not)]


def grant_from(row: object) -> GrantRow:
    repositories, includes, excludes, actions = map(tuple, row)  # type: ignore[call-overload]
    return GrantRow(repositories, includes, excludes, actions)
