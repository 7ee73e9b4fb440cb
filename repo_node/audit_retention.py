"""Lets go of what the audit log keeps no longer."""

from __future__ import annotations

from collections.abc import Callable

from repo_node.db import events
from repo_node.db.lease import Lease
from repo_node.db.pool import Database
from sharding.maintenance.job import Step

PAGE = 5_000
"""Events that one step lets go of at most."""


class AuditRetention:
    """The job ``audit``, on the primary alone."""

    name = "audit"

    def __init__(self, database: Database, lease: Callable[[], Lease | None]) -> None:
        self._database = database
        self._lease = lease

    async def step(self) -> Step:
        lease = self._lease()
        if lease is None:
            return Step(idle=True)
        gone = await events.forget(self._database, lease, PAGE)
        return Step(done=gone, idle=gone == 0)
