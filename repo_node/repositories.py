"""The service for repositories: what the HTTP surfaces and the other services call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from repo_node.db import repositories as rows
from repo_node.db.pool import Database
from repo_node.db.repositories import Repository
from repo_node.errors import MadeAnew, NotFound, absent
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath, check_repository_key
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.settings import LiveSettings
from sharding.model import ALL_DIGESTS


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
        self._forgotten = 0

    @property
    def is_fresh(self) -> bool:
        """Whether Postgres can be believed when it says that something is absent."""
        return self._fresh()

    async def list_all(self) -> list[Repository]:
        """Return every repository, by key."""
        return await rows.list_all(self._database)

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

    async def explain_loss(self, repository: Repository) -> NoReturn:
        """Raise what it means that a repository that was recalled is not there: ``NotFound``, or ``MadeAnew``."""
        self.forget()
        await self.get(repository.key)
        raise MadeAnew(f"The repository {repository.key} was made anew during the upload. Nothing was stored; retry.")

    def forget(self) -> None:
        """Forget every repository: one of them changed."""
        self._forgotten += 1
        self._remembered.clear()

    async def create(
        self,
        key: str,
        *,
        description: str,
        redundancy: int | None,
        by: Origin,
        trash: bool = True,
        digests: Sequence[str] = ALL_DIGESTS,
    ) -> None:
        """Make a local generic repository. Raises ``BadPath``, ``RepositoryExists``."""
        await rows.create(
            self._database,
            check_repository_key(key),
            rclass="local",
            package_type="generic",
            description=description,
            redundancy=redundancy,
            by=by,
            trash=trash,
            digests=digests,
        )
        self.forget()

    async def change(
        self,
        key: str,
        *,
        by: Origin,
        trash: bool | None = None,
        digests: Sequence[str] | None = None,
    ) -> None:
        """Let the trash keep what leaves a repository from now on, or not; compute these digests of what comes to it.

        None leaves as it is. Raises ``NotFound``.
        """
        if not await rows.change(self._database, key, trash=trash, digests=digests, by=by):
            raise absent(NotFound(f"There is no repository {key}."), fresh=self._fresh())
        self.forget()

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


def no_repository(key: str) -> NotFound:
    """Return what is said of a repository that is not there."""
    # The words by which clients of Artifactory tell absence from other failures.
    return NotFound(f"Unable to find item: there is no repository {key}.")
