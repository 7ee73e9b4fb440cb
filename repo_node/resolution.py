"""Where a path leads: asked of Postgres or, while it is away, of what it told lately; through virtual repositories too.

What a path of a virtual repository may mean are several places, all looked up in one round trip: the first that has
an artifact is it. Whoever may not read one of them does not see through to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from repo_node.auth.read_scope import EVERYTHING, ReadScope
from repo_node.db.artifacts import Item
from repo_node.db.errors import AbsenceInDoubt, CatalogueUnavailable
from repo_node.db.lookups import LookUps
from repo_node.errors import NotFound, absent
from repo_node.metrics import Metrics
from repo_node.paths import ArtifactPath
from repo_node.recent import Found, RecentItems
from repo_node.repositories import Repositories, no_repository
from repo_node.settings import LiveSettings
from repo_node.views import View, place_in


class Hearing(Protocol):
    """What heartbeats tell of Postgres."""

    @property
    def is_fresh(self) -> bool:
        """Whether heartbeats and announcements come back."""
        ...

    @property
    def silence_seconds(self) -> float:
        """How long ago the last heartbeat came back, or was refused with a reason."""
        ...


class Resolution:
    """Finds what is at paths."""

    def __init__(
        self,
        look_ups: LookUps,
        repositories: Repositories,
        settings: LiveSettings,
        metrics: Metrics,
        recent: RecentItems,
        pulse: Hearing,
    ) -> None:
        self._look_ups = look_ups
        self._repositories = repositories
        self._settings = settings
        self._metrics = metrics
        self._recent = recent
        self._pulse = pulse

    async def get(self, at: ArtifactPath, scope: ReadScope = EVERYTHING) -> Item:
        """Return the artifact or folder at a path, through a virtual repository as far as ``scope`` reaches.

        Raises ``NotFound``, ``CatalogueUnavailable``.
        """
        self._require_heard()
        view = await self._known_view(at)
        if view is None:
            found = await self._look_ups.resolve(at)
            if found.item is not None:
                return found.item
            if not found.is_virtual or (view := await self._repositories.view(at.repository)) is None:
                missing = no_repository(at.repository) if found.repository_id is None else NotFound("File not found.")
                raise absent(missing, fresh=self._pulse.is_fresh)
        sources = [source for source in view.sources if scope.reaches(source.key, at.path)]
        shown = {source.key: source for source in sources}
        items = await self._items([place_in(source, at) for source in sources])
        for item in sorted(items, key=lambda item: item.blob is None):
            if shown[item.repository].shows(at.path, item.blob is None, scope):
                return item
        raise absent(NotFound("File not found."), fresh=self._pulse.is_fresh)

    async def get_lately(self, at: ArtifactPath, scope: ReadScope = EVERYTHING) -> Found:
        """Return what is at a path or, while Postgres is away, what it told of it lately. Errors as ``get``.

        Of a virtual repository, artifacts alone.
        """
        places = await self._places(at, scope)
        mark, asked_at, fresh = self._recent.mark(*places), time.monotonic(), self._pulse.is_fresh
        try:
            item = await self._ask(places, scope, patiently=fresh)
        except (NotFound, AbsenceInDoubt):
            # In doubt too: what Postgres may well have seen deleted must not come back.
            for place in places:
                self._recent.forget(place)
            raise
        except (CatalogueUnavailable, TimeoutError) as error:
            if (known := self._recent.find(*places)) is None or self._has_been_heard_since(asked_at):
                raise CatalogueUnavailable(str(error) or "Postgres did not answer in time") from error
            self._metrics.stale_reads.inc()
            return known
        if fresh:
            self._recent.keep(places[0], item, mark, asked_at, *places[1:])
        elif (silence_seconds := self._pulse.silence_seconds) > self._settings.now.node_down_seconds:
            self._metrics.stale_reads.inc()
            return Found(item, silence_seconds)
        return Found(item)

    async def _known_view(self, at: ArtifactPath) -> View | None:
        """Return the virtual repository that a path is in, None while this node has not heard that it is one.

        So a look-up in a local one asks nothing first.
        """
        if not self._repositories.may_be_virtual(at.repository):
            return None
        return await self._repositories.view(at.repository)

    async def _places(self, at: ArtifactPath, scope: ReadScope) -> Sequence[ArtifactPath]:
        """Return where an artifact may lie. Raises ``NotFound`` when that is nowhere."""
        view = await self._known_view(at)
        if view is None:
            return (at,)
        places = [place for place in view.places(at) if scope.allows(place.repository, place.path)]
        if not places:
            raise absent(NotFound("File not found."), fresh=self._pulse.is_fresh)
        return places

    def _require_heard(self) -> None:
        settings = self._settings.now
        if self._pulse.silence_seconds > max(settings.stale_seconds_max, settings.node_down_seconds):
            # What answers may be a server that a failover has left behind.
            raise CatalogueUnavailable("Postgres has confirmed no heartbeat for too long to be believed")

    def _has_been_heard_since(self, asked_at: float) -> bool:
        """Say whether Postgres is there, and only this node's pool has no connection to it that works."""
        return self._pulse.is_fresh and self._pulse.silence_seconds < time.monotonic() - asked_at

    async def _ask(self, places: Sequence[ArtifactPath], scope: ReadScope, *, patiently: bool) -> Item:
        """Ask Postgres; where memory could answer too, for ``stale_after_seconds`` in the end.

        One failure while heartbeats come back says little: a single connection may have broken.
        """
        if patiently or self._recent.find(*places) is None:
            try:
                return await self._first(places, scope)
            except AbsenceInDoubt:
                raise
            except CatalogueUnavailable:
                if self._recent.find(*places) is None:
                    raise
        async with asyncio.timeout(self._settings.now.stale_after_seconds):
            return await self._first(places, scope)

    async def _first(self, places: Sequence[ArtifactPath], scope: ReadScope) -> Item:
        """Return the artifact at the first of these places that has one; of a single place, what is there."""
        if len(places) == 1:
            return await self.get(places[0], scope)
        self._require_heard()
        for item in await self._items(places):
            if item.blob is not None:
                return item
        raise absent(NotFound("File not found."), fresh=self._pulse.is_fresh)

    async def _items(self, places: Sequence[ArtifactPath]) -> list[Item]:
        """Return what is at these places, in their order, with one round trip to Postgres."""
        return [found.item for found in await self._look_ups.resolve_all(places) if found.item is not None]
