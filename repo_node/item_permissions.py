"""The service that tells who may do what with one item: what permission targets give there, to users and to groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from repo_node.auth.authenticator import grant_of
from repo_node.auth.rights import ACTIONS, NOWHERE, Permission, compile_rights
from repo_node.db import rights as rows
from repo_node.db.pool import Database
from repo_node.paths import ArtifactPath

Actions = Mapping[str, Sequence[Permission]]


@dataclass(frozen=True, slots=True)
class ItemPermissions:
    """Users and groups that may do something, each with what; nobody who only may because they administer."""

    users: Actions
    groups: Actions


class WhoMay:
    """Asks Postgres, each time: nothing is decided by what it tells."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def at(self, at: ArtifactPath) -> ItemPermissions:
        """Return who may do what at a path."""
        found: tuple[dict[str, Sequence[Permission]], dict[str, Sequence[Permission]]] = ({}, {})
        named = await rows.in_repository(self._database, at.repository)
        for (is_group, name), grants in groupby(named, attrgetter("is_group", "name")):
            rights = compile_rights(grant_of(one.grant) for one in grants)
            may = [action for action in sorted(ACTIONS) if rights.get(action, NOWHERE).allow(at.repository, at.path)]
            if may:
                found[is_group][name] = may
        return ItemPermissions(*found)
