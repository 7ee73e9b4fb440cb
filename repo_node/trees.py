"""The service for what lies in folders: lists, and what was modified last."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter, itemgetter

from repo_node.auth.read_scope import ReadScope
from repo_node.db import artifacts
from repo_node.db import trees as rows
from repo_node.db.artifacts import Child
from repo_node.db.paging import PAGE
from repo_node.db.pool import Database
from repo_node.db.trees import Entry, Narrowing
from repo_node.merging import merged
from repo_node.paths import ArtifactPath, join_path
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from repo_node.views import Source

SHARE_MIN = 100
"""A page of fewer rows costs more for each."""


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

    def __init__(self, database: Database, repositories: Repositories, settings: LiveSettings) -> None:
        self._database = database
        self._repositories = repositories
        self._settings = settings

    async def children(self, at: ArtifactPath, scope: ReadScope) -> AsyncGenerator[Sequence[Child], None]:
        """Yield what ``scope`` has directly in a folder, or in a repository, by name, in pages, at least one.

        All but the last have ``merging.PAGE`` items. Raises ``NotFound``, ``CatalogueUnavailable``.
        """

        sources = await self._repositories.sources(at.repository)
        rows_max = share_of(len(sources))

        async def of(source: Source) -> AsyncGenerator[Sequence[Child], None]:
            whole = source.covers(at.path, scope)
            found = artifacts.children(self._database, source.repository.id, at.path, rows_max=rows_max)
            async with aclosing(found) as pages:
                async for page in pages:
                    yield [
                        child
                        for child in page
                        if whole or source.shows(join_path(at.path, child.name), child.is_folder, scope)
                    ]

        async with aclosing(merged([of(source) for source in sources], attrgetter("name"))) as pages:
            async for page in pages:
                yield page

    async def list(self, at: ArtifactPath, depth: Depth, scope: ReadScope) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield pages, some of them empty, of what ``scope`` has in a folder, by path. Raises ``NotFound``."""
        sources = await self._repositories.sources(at.repository)
        rows_max = share_of(len(sources))

        async def of(source: Source) -> AsyncGenerator[Sequence[Entry], None]:
            whole = source.covers(at.path, scope)
            async with aclosing(self._pages(source, at.path, depth, scope, rows_max)) as pages:
                async for page in pages:
                    yield [
                        entry
                        for entry in page
                        if entry.path != at.path
                        and depth.takes(entry, at.path)
                        and (whole or source.shows(entry.path, entry.is_folder, scope))
                    ]

        one = of(sources[0]) if len(sources) == 1 else merged([of(source) for source in sources], place_of)
        async with aclosing(one) as pages:
            async for page in pages:
                yield page

    def _pages(
        self, source: Source, path: str, depth: Depth, scope: ReadScope, rows_max: int
    ) -> AsyncGenerator[Sequence[Entry], None]:
        """Return what reads the rows: no more of them than a list of everything, and all that belong to this one."""
        where = (self._database, source.repository.id, path)
        if depth.levels == 1:
            return rows.children(*where, rows_max=rows_max)
        reach, limit = source.reach(scope, folders=depth.folders), source.limit(scope)
        everything = limit is None or (source.covers(path, scope) and source.repository.paths_regex is None)
        if depth.levels is None and everything:
            return rows.tree(*where, rows_max=rows_max)
        return rows.walk(*where, Narrowing(depth.levels, depth.folders, reach, limit), rows_max=rows_max)

    async def last_modified(self, at: ArtifactPath, scope: ReadScope) -> tuple[str, datetime] | None:
        """Return what ``scope`` has in a folder that was modified last, and when; None when it has no artifact there.

        Raises ``NotFound``, ``SearchTooLong``.
        """
        seconds_max = self._settings.now.search_seconds_max
        found = [
            await rows.last_modified(
                self._database, source.repository.id, at.path, source.limit(scope), seconds_max=seconds_max
            )
            for source in await self._repositories.sources(at.repository)
        ]
        return max(filter(None, found), key=itemgetter(1), default=None)


def share_of(sources: int) -> int:
    """Return how many rows a page of each of several sources has, all of which are in memory at once."""
    return max(PAGE // max(sources, 1), SHARE_MIN)


def place_of(entry: Entry) -> tuple[str, str]:
    return entry.folder, entry.name
