"""The service for repositories: what the HTTP surfaces call."""

from __future__ import annotations

from repo_node.db import repositories as rows
from repo_node.db.pool import Database
from repo_node.db.repositories import Repository
from repo_node.errors import NotFound
from repo_node.paths import check_repository_key


class Repositories:
    """Lists, makes and deletes repositories."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_all(self) -> list[Repository]:
        """Return every repository, by key."""
        return await rows.list_all(self._database)

    async def get(self, key: str) -> Repository:
        """Return a repository. Raises ``NotFound``."""
        found = await rows.find(self._database, key)
        if found is None:
            raise NotFound(f"There is no repository {key}.")
        return found.repository

    async def create(
        self,
        key: str,
        *,
        description: str,
        redundancy: int | None,
        principal: str,
        request_id: str,
        trash: bool = True,
    ) -> None:
        """Make a local generic repository. Raises ``BadPath``, ``RepositoryExists``."""
        await rows.create(
            self._database,
            check_repository_key(key),
            rclass="local",
            package_type="generic",
            description=description,
            redundancy=redundancy,
            principal=principal,
            request_id=request_id,
            trash=trash,
        )

    async def switch_trash(self, key: str, keep: bool, *, principal: str, request_id: str) -> None:
        """Let the trash keep what leaves a repository from now on, or not. Raises ``NotFound``."""
        if not await rows.switch_trash(self._database, key, keep, principal=principal, request_id=request_id):
            raise NotFound(f"There is no repository {key}.")

    async def delete(self, key: str, *, principal: str, request_id: str) -> None:
        """Delete a repository with everything in it. Raises ``NotFound``."""
        if not await rows.delete(self._database, key, principal=principal, request_id=request_id):
            raise NotFound(f"There is no repository {key}.")
