"""The switch that makes the whole cluster read-only, for work on the database: what refuses, and what pauses.

It is a setting, ``read_only_reason``, so it reaches every node as settings do. Repairs and the checks of disks go on:
they only add copies and set bad ones aside, whose rows a database from before still describes well enough.
"""

from __future__ import annotations

from repo_node.errors import RequestError
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Job, Promptable, Step

SWITCH = "read_only_reason"


class ReadOnly(RequestError):
    """Something was to be changed while the cluster is read-only."""

    status = 503


def require_writable(settings: LiveSettings) -> None:
    """Raise ``ReadOnly`` while the cluster is read-only."""
    if reason := settings.now.read_only_reason:
        raise ReadOnly(f"The cluster is read-only: {reason}. Nothing was changed; retry later.")


class PausedWhileReadOnly:
    """A job that deletes or moves: while the cluster is read-only there is nothing to do."""

    def __init__(self, job: Job, settings: LiveSettings) -> None:
        self._job = job
        self._settings = settings

    @property
    def name(self) -> str:
        return self._job.name

    def prompt(self) -> None:
        if isinstance(self._job, Promptable):
            self._job.prompt()

    async def step(self) -> Step:
        if self._settings.now.read_only_reason:
            return Step(idle=True)
        return await self._job.step()
