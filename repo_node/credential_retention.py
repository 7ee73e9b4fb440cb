"""Lets go of tokens that have ended, and of wrong logins that lock nobody out any more."""

from __future__ import annotations

from collections.abc import Callable

from repo_node.db import credentials
from repo_node.db.lease import Lease
from repo_node.db.pool import Database
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Step

PAGE = 1_000
"""Rows of each kind that one step lets go of at most."""


class CredentialRetention:
    """The job ``tokens``, on the primary alone."""

    name = "tokens"

    def __init__(self, database: Database, lease: Callable[[], Lease | None], settings: LiveSettings) -> None:
        self._database = database
        self._lease = lease
        self._settings = settings

    async def step(self) -> Step:
        lease, now = self._lease(), self._settings.now
        if lease is None:
            return Step(idle=True)
        gone = await credentials.forget(
            self._database, lease, kept_days=now.tokens_kept_days, lock_seconds=now.login_lock_seconds, count=PAGE
        )
        return Step(done=gone, idle=gone == 0)
