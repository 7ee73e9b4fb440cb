"""The service for what lies in folders: lists, and what was modified last."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from repo_node.auth.read_scope import ReadScope
from repo_node.db import trees as rows
from repo_node.db.pool import Database
from repo_node.db.trees import Entry
from repo_node.paths import ArtifactPath
from repo_node.repositories import Repositories


@dataclass(frozen=True, slots=True)
class Depth:
    """How deep a list goes: 1 is what lies directly in a folder, None is everything."""

    levels: int | None
    folders: bool

    def takes(self, entry: Entry, below: str) -> bool:
        """Say whether an entry below a folder belongs to the list."""
        level = entry.path[len(below) :].strip("/").count("/") + 1
        return (self.folders or not entry.is_folder) and (self.levels is None or level <= self.levels)


class Trees:
    """Lists folders, page by page, in memory that does not grow with them."""

    def __init__(self, database: Database, repositories: Repositories) -> None:
        self._database = database
        self._repositories = repositories

    async def list(self, at: ArtifactPath, depth: Depth, scope: ReadScope) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield pages, some of them empty, of what ``scope`` has in a folder, by path. Raises ``NotFound``."""
        repository = await self._repositories.get(at.repository)
        near, whole = depth.levels == 1, scope.covers(at.repository, at.path)
        source = (rows.children if near else rows.tree)(self._database, repository.id, at.path)
        async with aclosing(source) as pages:
            async for page in pages:
                yield [
                    entry
                    for entry in page
                    if entry.path != at.path
                    and depth.takes(entry, at.path)
                    and (whole or is_known(entry, at.repository, scope))
                ]

    async def last_modified(self, at: ArtifactPath, scope: ReadScope) -> tuple[str, datetime] | None:
        """Return what ``scope`` has in a folder that was modified last, and when; None when it has no artifact there.

        Raises ``NotFound``.
        """
        repository = await self._repositories.get(at.repository)
        return await rows.last_modified(self._database, repository.id, at.path, scope.limit(at.repository))


def is_known(entry: Entry, repository: str, scope: ReadScope) -> bool:
    return scope.reaches(repository, entry.path) if entry.is_folder else scope.allows(repository, entry.path)
