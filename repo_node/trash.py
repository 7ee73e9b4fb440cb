"""The service for the trash: list, restore, let go; and the job that lets go of what is old enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from repo_node.db import repositories
from repo_node.db import trash as rows
from repo_node.db.blobs import PathConflict
from repo_node.db.errors import Immutable, KeptOut
from repo_node.db.lease import Lease
from repo_node.db.pool import Database
from repo_node.db.repositories import Repository
from repo_node.db.trash import DELETED, Position, Restored, Trashed
from repo_node.errors import NotFound
from repo_node.metrics.deletion import DeletionMetrics
from repo_node.origin import Origin
from repo_node.outcome import until_known
from repo_node.paths import ArtifactPath, join_path
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.repositories import require_accepted
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Step

PAGE = 1_000
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Restoration:
    """How many artifacts came back, how many had come back before, and how many have something in their place."""

    restored: int = 0
    already: int = 0
    skipped: int = 0


class Trash:
    """What was deleted or overwritten, and how to get it back."""

    def __init__(self, database: Database, recent: RecentItems, settings: LiveSettings) -> None:
        self._database = database
        self._recent = recent
        self._settings = settings

    async def page(self, at: ArtifactPath | None, after: Position, items_max: int) -> list[Trashed]:
        """Return a page of the trash, all of it or what was at a path and then what was below, by place and age.

        The next page is behind the place of the last item; a page that is not full is the last.
        """
        if at is None:
            return await rows.list_all(self._database, after, items_max)
        found: list[Trashed] = []
        if at.name and (after == Position() or (after.folder, after.name) == (at.folder, at.name)):
            found = await rows.list_path(self._database, at.repository, at.folder, at.name, after.id, items_max)
            after = Position()
        if len(found) < items_max:
            left = items_max - len(found)
            found += await rows.list_tree(self._database, at.repository, at.path, after, left)
        return found

    async def _last(self, at: ArtifactPath) -> Trashed | None:
        """Return what was thrown away last at exactly this path."""
        return await rows.find_last(self._database, at.repository, at.folder, at.name) if at.name else None

    async def restore(self, at: ArtifactPath, to: ArtifactPath, *, replace: bool, by: Origin) -> Restoration:
        """Bring back to ``to`` what was thrown away last at a path, or all that was deleted from a folder.

        What is in the place of a single artifact goes to the trash, unless a restore has put it there since: whoever
        repeats a restore gets no older version, nor what the first one replaced, but with ``replace``. Of a folder,
        each path gets the version that was deleted last; one that was only overwritten comes back by its own path
        alone. What is in its place stays, and that one is skipped, unless ``replace``.
        Raises ``NotFound``, ``PathConflict``, ``Forbidden``, ``Immutable``, ``QuotaExceeded``, ``OutcomeUnknown``.
        """
        target = await repositories.find(self._database, to.repository)
        if target is None or target.is_virtual:
            raise NotFound(f"There is no local repository {to.repository}; make it, or name another place with ?to=.")
        restorer = Restorer(self._database, target, self._settings, by)
        if (last := await self._last(at)) is not None:
            place = ArtifactPath(to.repository, to.folder, to.name or at.name)
            require_accepted(target, place)
            try:
                outcome = await restorer.restore(last, place.folder, place.name, replace=True, again=replace)
            finally:
                self._recent.forget(place)
            found = Counter([outcome])
        else:
            found = await self._restore_below(at, to, restorer, replace)
        if not found.total() - found[Restored.GONE]:
            raise NotFound(
                f"The trash holds nothing that was deleted from {at.repository}/{at.path}, or no more: a restore whose "
                "answer was lost may have brought it back. An overwritten version comes back by its own path."
            )
        return Restoration(found[Restored.RESTORED], found[Restored.ALREADY], found[Restored.EXISTS])

    async def _restore_below(
        self, at: ArtifactPath, to: ArtifactPath, restorer: Restorer, replace: bool
    ) -> Counter[Restored]:
        found: Counter[Restored] = Counter()
        async for newest in self._newest_deleted(at):
            folder = "/".join(filter(None, (to.path, newest.folder[len(at.path) :].strip("/"))))
            if not restorer.target.accepts(join_path(folder, newest.name)):
                found[Restored.EXISTS] += 1  # its place is one that nothing may come to
                continue
            try:
                found[await restorer.restore(newest, folder, newest.name, replace=replace)] += 1
            except (PathConflict, Immutable, KeptOut):
                # A folder is in its place, or an artifact in that of its folder, or one that stays as it is.
                found[Restored.EXISTS] += 1
            finally:
                self._recent.forget(ArtifactPath(to.repository, folder, newest.name))
        return found

    async def _newest_deleted(self, at: ArtifactPath) -> AsyncIterator[Trashed]:
        """Yield, of everything below a folder, what was deleted last at each path."""
        last: Trashed | None = None
        async for one in self._items(at):
            # What lay at the path itself is not below it.
            if one.reason != DELETED or (one.folder, one.name) == (at.folder, at.name):
                continue
            if last is not None and last.path != one.path:
                yield last
            last = one
        if last is not None:
            yield last

    async def _items(self, at: ArtifactPath | None) -> AsyncIterator[Trashed]:
        after = Position()
        while page := await self.page(at, after, PAGE):
            for one in page:
                yield one
            last = page[-1]
            after = Position(last.repository, last.folder, last.name, last.id)

    async def empty(self, at: ArtifactPath | None, *, by: Origin) -> int:
        """Let go of everything for good, or of what lay at and below a path; return how many artifacts that were."""
        gone = 0
        ids: list[int] = []
        async for one in self._items(at):
            ids.append(one.id)
            if len(ids) == PAGE:
                gone += await self._let_go(ids)
                ids = []
        gone += await self._let_go(ids)
        where = (None, None) if at is None else (at.repository, at.path)
        await rows.record_emptied(self._database, *where, items=gone, by=by)
        return gone

    async def _let_go(self, ids: list[int]) -> int:
        require_writable(self._settings, begun=True)
        return await rows.empty(self._database, ids)


@dataclass(frozen=True, slots=True)
class Restorer:
    """Brings things back into one repository, each until its outcome is known."""

    database: Database
    target: Repository
    settings: LiveSettings
    by: Origin

    async def restore(self, one: Trashed, folder: str, name: str, *, replace: bool, again: bool = False) -> Restored:
        require_writable(self.settings, begun=True)
        known = await until_known(
            lambda: rows.restore(
                self.database,
                one.id,
                self.target.id,
                folder,
                name,
                replace=replace,
                by=self.by,
                again=again,
            ),
            wait_seconds=self.settings.now.outcome_wait_seconds,
        )
        if known.doubted and known.result is Restored.GONE:
            return Restored.RESTORED  # by the attempt that never answered
        return known.result


class TrashExpiry:
    """The job ``trash``: lets go of what has been in the trash for longer than ``trash_days``."""

    name = "trash"

    def __init__(
        self, database: Database, lease: Callable[[], Lease | None], settings: LiveSettings, metrics: DeletionMetrics
    ) -> None:
        self._database = database
        self._lease = lease
        self._settings = settings
        self._metrics = metrics

    async def step(self) -> Step:
        lease = self._lease()
        if lease is None:
            return Step(idle=True)
        age_seconds = self._settings.now.trash_days * DAY_SECONDS
        gone = await rows.expire(self._database, lease, age_seconds=age_seconds, items_max=PAGE)
        self._metrics.trash_emptied.inc(gone)
        return Step(done=gone, idle=gone == 0)
