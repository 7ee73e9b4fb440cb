"""The service that copies and moves artifacts and folders, by their rows: no byte is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from repo_node.artifacts import Artifacts
from repo_node.db import transfers as rows
from repo_node.db.pool import Database
from repo_node.db.properties import Place
from repo_node.db.transfers import Transfer
from repo_node.errors import NotFound, RequestError, absent
from repo_node.origin import Origin
from repo_node.outcome import until_known
from repo_node.paths import ArtifactPath, split_path
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from sharding.crash_points import crash_point
from sharding.identifiers import uuid7

T = TypeVar("T")

PAGE = 1_000
FAILURES_TOLD_MAX = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """Regular expressions for the paths that may leave, come, and be overwritten; None for all.

    ``prunes``: whether the folders that a move leaves empty may go.
    """

    source: str | None = None
    target: str | None = None
    overwritten: str | None = None
    prunes: bool = True


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """``into``: the target was written with a slash at its end, and is a folder for an artifact."""

    move: bool
    source: ArtifactPath
    to: ArtifactPath
    into: bool
    dry: bool
    fail_fast: bool
    by: Origin
    limits: Limits = NO_LIMITS


@dataclass(slots=True)
class Transferred:
    """What was copied or moved, and the first of what could not be: target paths, each with the reason."""

    target: str
    artifacts: int = 0
    folders: int = 0
    failures: int = 0
    forbidden: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


class Transfers:
    """Copies and moves, in pages of a tree; what one that was interrupted left undone, a repeated one does."""

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        repositories: Repositories,
        recent: RecentItems,
        settings: LiveSettings,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._repositories = repositories
        self._recent = recent
        self._settings = settings

    async def run(self, request: TransferRequest) -> Transferred:
        """Copy or move an artifact, or a folder with all in it. An artifact is at one place or both, never at none.

        A target that is a folder takes the source into it; else the source becomes the target. An artifact in the
        place goes to the trash. The same request for a folder, soon after, means the same: the answer to the first may
        have been lost. Raises ``NotFound``, ``RequestError``, ``OutcomeUnknown``, ``ReadOnly``.
        """
        source, to = request.source, request.to
        from_repository = await self._repositories.get_own(source.repository)
        to_repository = await self._repositories.get_own(to.repository)
        identity = rows.transfer_id(str(request.move), *map(str, (source, to, request.into)))
        try:
            is_folder = not source.name or (await self._artifacts.get(source)).blob is None
        except NotFound:
            moved_to = await rows.find(self._database, identity) if request.move and not request.dry else None
            if moved_to is not None:
                return Transferred(moved_to)
            raise NotFound(f"Unable to find item {source.repository}:{source.path}.") from None
        target = await self._resolve(request, is_folder)
        check_apart(source, to.repository, target)
        if is_folder and not request.dry:
            target = await self._known(lambda: rows.begin(self._database, identity, target))
        limits = (request.limits.source, request.limits.target, request.limits.overwritten)
        transfer = Transfer(request.move, from_repository.id, source.path, to_repository.id, target, request.by, limits)
        try:
            done = await self._walk(transfer, request)
            if request.move and is_folder and request.limits.prunes and not request.dry:
                crash_point("transfer.walked")
                await self._known(lambda: rows.prune(self._database, transfer, items_max=PAGE))
        finally:
            self._recent.forget_tree(ArtifactPath(to.repository, *split_path(target)))
            if request.move:
                self._recent.forget_tree(source)
        if is_folder and not request.dry:
            await self._known(lambda: rows.end(self._database, identity))
        return done

    async def _resolve(self, request: TransferRequest, is_folder: bool) -> str:
        """Return the path that the source itself gets."""
        source, to = request.source, request.to
        inside = f"{to.path}/{source.name}".strip("/")
        if not (source.name and to.name):
            return inside if source.name else to.path
        if request.into and not is_folder:
            return inside
        try:
            there = await self._artifacts.get(to)
        except NotFound:
            return to.path
        return inside if there.blob is None else to.path

    async def _walk(self, transfer: Transfer, request: TransferRequest) -> Transferred:
        done, after, seen = Transferred(transfer.target), Place(), PAGE
        begun = False
        while seen == PAGE:
            require_writable(self._settings, begun=begun)
            event = uuid7()
            known = await until_known(
                lambda after=after, event=event: rows.page(  # type: ignore[misc]
                    self._database,
                    transfer,
                    after,
                    fail_fast=request.fail_fast,
                    dry=request.dry,
                    items_max=PAGE,
                    path_bytes_max=self._settings.now.path_bytes_max,
                    event=event,
                ),
                wait_seconds=self._settings.now.outcome_wait_seconds,
            )
            page = known.result
            if not (begun or page.seen or known.doubted) and request.source.name:
                raise absent(NotFound("Unable to find item"), fresh=self._repositories.is_fresh)
            seen, after, begun = page.seen, page.last, True
            add(done, page)
            if page.stopped:
                break
            crash_point("transfer.page")
        return done

    async def _known(self, write: Callable[[], Awaitable[T]]) -> T:
        return (await until_known(write, wait_seconds=self._settings.now.outcome_wait_seconds)).result


def add(done: Transferred, page: rows.Page) -> None:
    done.artifacts += page.artifacts
    done.folders += page.folders
    done.failures += len(page.failed)
    done.forbidden += sum(reason == "forbidden" for _, reason in page.failed)
    done.failed += page.failed[: FAILURES_TOLD_MAX - len(done.failed)]


def check_apart(source: ArtifactPath, repository: str, target: str) -> None:
    """Raise ``RequestError`` when the target is the source, or lies in it."""
    if repository != source.repository:
        return
    if target == source.path:
        raise RequestError("Source and destination are the same.")
    if not source.path or target.startswith(f"{source.path}/"):
        raise RequestError("The destination lies in the source.")
