"""Lets go of what is kept no longer: old events, tokens that have ended, wrong logins that lock nobody out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from repo_node.db import credentials, events
from repo_node.db.lease import Lease
from repo_node.db.pool import Database
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Step

EVENT_PAGE = 5_000
CREDENTIAL_PAGE = 1_000
"""Rows, of each kind, that one step lets go of at most."""


class Retention:
    """A job on the primary alone. ``forget`` lets go of a page, and returns how many rows that were."""

    def __init__(self, name: str, lease: Callable[[], Lease | None], forget: Callable[[Lease], Awaitable[int]]) -> None:
        self.name = name
        self._lease = lease
        self._forget = forget

    async def step(self) -> Step:
        lease = self._lease()
        if lease is None:
            return Step(idle=True)
        gone = await self._forget(lease)
        return Step(done=gone, idle=gone == 0)


def audit_retention(database: Database, lease: Callable[[], Lease | None]) -> Retention:
    """Return the job ``audit``."""
    return Retention("audit", lease, lambda held: events.forget(database, held, EVENT_PAGE))


def credential_retention(database: Database, lease: Callable[[], Lease | None], settings: LiveSettings) -> Retention:
    """Return the job ``tokens``."""

    def forget(held: Lease) -> Awaitable[int]:
        kept_days, lock_seconds = settings.now.tokens_kept_days, settings.now.login_lock_seconds
        return credentials.forget(database, held, kept_days=kept_days, lock_seconds=lock_seconds, count=CREDENTIAL_PAGE)

    return Retention("tokens", lease, forget)
