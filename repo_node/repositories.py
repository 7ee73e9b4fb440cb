"""The service for repositories: what the HTTP surfaces and the other services call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from repo_node.db import repositories as rows
from repo_node.db.errors import AbsenceInDoubt, CatalogueUnavailable, QuotaExceeded
from repo_node.db.pool import Database
from repo_node.db.repositories import LOCAL, Configuration, Repository
from repo_node.errors import Forbidden, MadeAnew, NotFound, RequestError, absent
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath, check_repository_key
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.settings import LiveSettings
from repo_node.views import Source, View, make_view


class Repositories:
    """Lists, makes and deletes repositories, and remembers those that uploads go to.

    ``fresh`` says whether announcements of changes arrive; only then is anything remembered, or said to be absent:
    what raises ``NotFound`` raises ``CatalogueUnavailable`` else.
    """

    def __init__(
        self, database: Database, fresh: Callable[[], bool], recent: RecentItems, settings: LiveSettings
    ) -> None:
        self._database = database
        self._fresh = fresh
        self._recent = recent
        self._settings = settings
        self._remembered: dict[str, Repository] = {}
        self._views: dict[str, View] = {}
        self._last_views: dict[str, View] = {}
        """What was remembered last, also when it has been forgotten: for reads while Postgres is away."""
        self._every: Sequence[Repository] | None = None
        self._forgotten = 0

    @property
    def is_fresh(self) -> bool:
        """Whether Postgres can be believed when it says that something is absent."""
        return self._fresh()

    async def list_all(self) -> list[Repository]:
        """Return every repository, by key."""
        return await rows.list_all(self._database)

    async def recall_all(self) -> Sequence[Repository]:
        """Return every repository as it was until a moment ago; for whoever finds nothing in what is no longer so."""
        if self._fresh() and self._every is not None:
            return self._every
        forgotten = self._forgotten
        found = await self.list_all()
        if self._fresh() and forgotten == self._forgotten:
            self._every = found
        return found

    async def get(self, key: str) -> Repository:
        """Return a repository. Raises ``NotFound``."""
        found = await rows.find(self._database, key)
        if found is None:
            raise absent(no_repository(key), fresh=self._fresh())
        return found

    async def recall(self, key: str) -> Repository:
        """Return a repository as it was until a moment ago. Raises ``NotFound``.

        For whoever finds out in time when it is no longer so: the commit of an upload looks again.
        """
        if self._fresh() and (known := self._remembered.get(key)) is not None:
            return known
        forgotten = self._forgotten
        found = await self.get(key)
        # What was announced while it was being read may concern it.
        if self._fresh() and forgotten == self._forgotten:
            self._remembered[key] = found
        return found

    def may_be_virtual(self, key: str) -> bool:
        """Say whether a repository was virtual when this node last heard of it."""
        return key in self._last_views

    async def view(self, key: str) -> View | None:
        """Return a virtual repository as it was until a moment ago, None for a local one.

        Where Postgres cannot be asked, as it was when it last could. Raises ``NotFound``, ``CatalogueUnavailable``.
        """
        if self._fresh() and (known := self._views.get(key)) is not None:
            return known
        last = self._last_views.get(key)
        if not self._fresh() and (last is not None or key in self._remembered):
            return last
        try:
            return await self._ask_view(key)
        except AbsenceInDoubt:
            raise
        except CatalogueUnavailable:
            if last is None:
                raise
            return last
        except NotFound:
            self._last_views.pop(key, None)
            raise

    async def _ask_view(self, key: str) -> View | None:
        forgotten = self._forgotten
        repository = await self.recall(key)
        if not repository.is_virtual:
            self._last_views.pop(key, None)
            return None
        view = make_view(repository, await rows.find_members(self._database, repository.id))
        self._last_views[key] = view
        if self._fresh() and forgotten == self._forgotten:
            self._views[key] = view
        return view

    async def sources(self, key: str) -> Sequence[Source]:
        """Return where what a repository shows lies: in itself, or in others. Raises ``NotFound``."""
        repository = await self.get(key)
        if not repository.is_virtual:
            return [Source(repository)]
        return make_view(repository, await rows.find_members(self._database, repository.id)).sources

    async def get_own(self, key: str) -> Repository:
        """Return a repository that holds what it shows. Raises ``NotFound``, ``RequestError`` for a virtual one."""
        repository = await self.get(key)
        if repository.is_virtual:
            raise RequestError(
                f"{key} is a virtual repository, which holds nothing itself: "
                "name the repository in which it lies. Nothing was changed."
            )
        return repository

    async def deploy_place(self, at: ArtifactPath) -> ArtifactPath:
        """Return where an upload to a path goes: through a virtual repository, to the one it names for that.

        Raises ``NotFound``, ``RequestError``, ``Forbidden``.
        """
        if not (await self.recall(at.repository)).is_virtual or (view := await self.view(at.repository)) is None:
            return at
        target = view.deploy_place(at)
        if target is None:
            raise RequestError(
                f"The virtual repository {at.repository} has no default deployment repository. Nothing was stored."
            )
        require_accepted(view.repository, at)
        return target

    async def require_room(self, repository: Repository, at: ArtifactPath, size: int = 0) -> None:
        """Raise ``Forbidden`` when nothing may come to a path, ``QuotaExceeded`` when so many bytes cannot.

        Rather now than when they have been sent in vain. Of a repository without quota, nothing is asked.
        """
        require_accepted(repository, at)
        if repository.quota_bytes is None:
            return
        used = await rows.used_beside(self._database, repository.id, at.folder, at.name)
        if used is not None and used + size > repository.quota_bytes:
            raise QuotaExceeded(
                f"the repository {repository.key} has a quota of {repository.quota_bytes} bytes, "
                f"of which other artifacts than {at.path} use {used}"
            )

    async def explain_loss(self, repository: Repository) -> NoReturn:
        """Raise what it means that a repository that was recalled is not there: ``NotFound``, or ``MadeAnew``."""
        self.forget()
        await self.get(repository.key)
        raise MadeAnew(f"The repository {repository.key} was made anew during the upload. Nothing was stored; retry.")

    def forget(self) -> None:
        """Forget every repository: one of them changed."""
        self._forgotten += 1
        self._remembered.clear()
        self._views.clear()
        self._every = None

    async def create(
        self,
        key: str,
        configuration: Configuration,
        *,
        rclass: str = LOCAL,
        by: Origin,
    ) -> None:
        """Make a generic repository. Raises ``BadPath``, ``RepositoryExists``, ``BadRepository``."""
        await rows.create(self._database, check_repository_key(key), configuration, rclass=rclass, by=by)
        self.forget()

    async def change(self, key: str, changes: Mapping[str, Any], *, by: Origin) -> None:
        """Change fields of a repository's ``Configuration``. Raises ``NotFound``, ``BadRepository``."""
        if await rows.change(self._database, key, changes, by=by) is None:
            raise absent(no_repository(key), fresh=self._fresh())
        self.forget()

    async def used_bytes(self, repository: Repository) -> int | None:
        """Return the bytes in a repository with a quota; None for others, and until they are counted."""
        return await rows.used_bytes(self._database, repository.id) if repository.quota_bytes is not None else None

    async def delete(self, key: str, *, by: Origin) -> None:
        """Delete a repository with everything in it. Raises ``NotFound``, ``ReadOnly``."""

        def check() -> None:
            require_writable(self._settings, begun=True)

        try:
            gone = await rows.delete(self._database, key, by=by, check=check)
        finally:
            self.forget()
            self._recent.forget_tree(ArtifactPath(key, "", ""))
        if not gone:
            raise absent(no_repository(key), fresh=self._fresh())


def require_accepted(repository: Repository, at: ArtifactPath) -> None:
    """Raise ``Forbidden`` when a repository's patterns let nothing come to a path."""
    if not repository.accepts(at.path):
        raise Forbidden(
            f"The repository {repository.key} rejected {at.path}: "
            + ("it is blacked out." if repository.blacked_out else "its include and exclude patterns keep it out.")
        )


def no_repository(key: str) -> NotFound:
    """Return what is said of a repository that is not there."""
    # The words by which clients of Artifactory tell absence from other failures.
    return NotFound(f"Unable to find item: there is no repository {key}.")
