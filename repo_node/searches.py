"""The service for searches: what is asked, in the form that the rows are searched by."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from repo_node import patterns
from repo_node.auth.read_scope import ReadScope
from repo_node.db import searches as rows
from repo_node.db.pool import Database
from repo_node.db.scopes import RowScope
from repo_node.db.searches import Hit, Search, Times
from repo_node.errors import RequestError
from repo_node.patterns import folder_span, is_wild, like, literal_start, name_start, span
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from repo_node.versions import version_key
from repo_node.views import Source, make_view

VERSION = "version"
"""The property by whose value the latest version is told."""

VERSIONS_MAX = 10_000
BY_DIGEST = {"sha256": rows.BY_SHA256, "sha1": rows.BY_SHA1, "md5": rows.BY_MD5}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Properties that are asked for: values as they are, or with wildcards; no value stands for any."""

    properties: Mapping[str, Sequence[str]]

    @property
    def args(self) -> tuple[Any, ...]:
        pairs = [(key, value) for key, values in self.properties.items() for value in values]
        exact: dict[str, list[str]] = {}
        for key, value in pairs:
            if value and not is_wild(value):
                exact.setdefault(key, []).append(value)
        wild = [(key, like(value)) for key, value in pairs if is_wild(value) and value != "*"]
        return (
            json.dumps(exact),
            list(self.properties),
            [key for key, _ in wild],
            [pattern for _, pattern in wild],
        )


@dataclass(frozen=True, slots=True)
class Area:
    """Where is searched: what ``scope`` lets be read, in the repositories of these keys, or in all without any."""

    keys: Collection[str]
    scope: ReadScope


class Searches:
    """Finds artifacts in an area."""

    def __init__(self, database: Database, repositories: Repositories, settings: LiveSettings) -> None:
        self._database = database
        self._repositories = repositories
        self._settings = settings

    async def by_name(self, pattern: str, area: Area) -> list[Hit]:
        """Return artifacts whose name is like ``pattern``; without wildcards, those whose name has it as a part."""
        pattern = pattern if is_wild(pattern) else f"*{pattern}*"
        names = span(literal_start(pattern))
        return await self._search(rows.BY_NAME, area, names.low, names.high, like(pattern))

    async def by_path(self, pattern: str, area: Area) -> list[Hit]:
        """Return artifacts whose path matches an Ant pattern."""
        folders, names = folder_span(pattern), span(name_start(pattern))
        places = (folders.low, folders.high, names.low, names.high)
        return await self._search(rows.BY_PATH, area, *places, patterns.regex(pattern))

    async def by_gavc(
        self,
        group: str | None,
        artifact: str | None,
        version: str | None,
        classifier: str | None,
        area: Area,
    ) -> list[Hit]:
        """Return artifacts in Maven's layout by their coordinates, each None or with wildcards."""
        expression, wide = patterns.gavc(group, artifact, version, classifier)
        folders, names = folder_span(wide), span(literal_start(f"{artifact}-") if artifact else "")
        return await self._search(rows.BY_PATH, area, folders.low, folders.high, names.low, names.high, expression)

    async def by_digest(self, kind: str, digest: bytes, area: Area) -> list[Hit]:
        """Return artifacts with this content; ``kind`` is sha256, sha1 or md5."""
        return await self._search(BY_DIGEST[kind], area, digest)

    async def by_properties(self, wanted: Wanted, area: Area) -> list[Hit]:
        """Return artifacts and folders that have every property asked for."""
        return await self._search(rows.BY_PROPERTIES, area, *wanted.args)

    async def by_time(self, since: datetime, until: datetime, times: Times, area: Area) -> list[Hit]:
        """Return artifacts one of whose ``times`` lies between two, both included."""
        return await self._search(rows.BY_TIME, area, *rows.time_args(since, until, times))

    async def by_usage(self, not_used_since: datetime, created_before: datetime, area: Area) -> list[Hit]:
        """Return artifacts made before a time and not downloaded since another."""
        return await self._search(rows.BY_USAGE, area, not_used_since, created_before)

    async def versions(self, group: str, artifact: str, area: Area) -> list[str]:
        """Return the versions of a Maven module, latest first."""
        folder = f"{group.replace('.', '/')}/{artifact}"
        found = await self._values(rows.FOLDERS_IN, area, folder)
        return sorted(found, key=version_key, reverse=True)

    async def latest_by_property(
        self, path: str, wanted: Wanted, area: Area, *, with_artifacts: bool
    ) -> tuple[str, list[Hit]] | None:
        """Return the highest ``version`` among the properties below a path and what has it, None where none has."""
        folder = path.strip("/")
        any_version = Wanted({**wanted.properties, VERSION: wanted.properties.get(VERSION, [""])})
        found = await self._values(rows.PROPERTY_VALUES, area, *any_version.args, folder, VERSION)
        if not found:
            return None
        latest = max(found, key=version_key)
        if not with_artifacts:
            return latest, []
        exactly = Wanted({**wanted.properties, VERSION: [latest]})
        return latest, await self._search(rows.BY_PROPERTIES_IN_TREE, area, *exactly.args, folder)

    async def _search(self, asked: Search, area: Area, *args: Any) -> list[Hit]:
        now, among = self._settings.now, await self._among(area)
        found = await rows.find(
            self._database,
            asked,
            {one.repository.id: one.key for one in among},
            rows_in(area.scope, among),
            *args,
            results_max=now.search_results_max,
            seconds_max=now.search_seconds_max,
        )
        return sorted(found, key=lambda hit: (hit.item.repository, hit.item.folder, hit.item.name))

    async def _values(self, asked: Search, area: Area, *args: Any) -> list[str]:
        found = await rows.values(
            self._database,
            asked,
            rows_in(area.scope, await self._among(area)),
            *args,
            results_max=VERSIONS_MAX,
            seconds_max=self._settings.now.search_seconds_max,
        )
        if len(found) == VERSIONS_MAX:
            raise RequestError(f"There are more than {VERSIONS_MAX} versions; ask for less.")
        return found

    async def _among(self, area: Area) -> list[Source]:
        """Return where what is in an area lies; a repository that is not there holds nothing.

        What is asked for by its own name is not narrowed by a virtual repository that is asked for too.
        """
        every = await self._repositories.list_all()
        asked = [one for one in every if one.key in area.keys] if area.keys else every
        own = {one.key: Source(one) for one in asked if not one.is_virtual}
        seen = [source for one in asked if one.is_virtual for source in make_view(one, every).sources]
        return [*own.values(), *(source for source in seen if source.key not in own)]


def rows_in(scope: ReadScope, sources: Collection[Source]) -> RowScope:
    """Return what ``scope`` lets be read, without what patterns hide: of a repository what any of its sources shows."""
    found = scope.rows({one.repository.id: one.key for one in sources})
    known = {*found.whole, *found.partial}
    shown = [(one, one.limit(scope)) for one in sources if one.repository.id in known]
    whole = {one.repository.id for one, limit in shown if limit is None}
    partial = [(one, limit) for one, limit in shown if limit is not None and one.repository.id not in whole]
    subtrees = {(one.repository.id, root) for one, _ in partial for root in one.roots(scope)}
    return RowScope(
        tuple(whole),
        tuple(one.repository.id for one, _ in partial),
        tuple(limit for _, limit in partial),
        tuple(sorted(subtrees)),
    )
