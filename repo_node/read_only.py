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


def refusal(settings: LiveSettings) -> str | None:
    """Return why a change that Postgres itself does not check may not be made now, None when it may."""
    return switched_on(settings) or unheard(settings)


def switched_on(settings: LiveSettings) -> str | None:
    reason = settings.now.read_only_reason
    return f"The cluster is read-only: {reason}." if reason else None


def unheard(settings: LiveSettings) -> str | None:
    """A node that counts as down for the others has not heard of the switch either, though its pool may work."""
    if (age_seconds := settings.age_seconds) > settings.now.node_down_seconds:
        return f"This node has not heard for {age_seconds:.0f} s whether the cluster is read-only."
    return None


def require_writable(settings: LiveSettings, *, begun: bool = False) -> None:
    """Raise ``ReadOnly`` while the switch is known to be on; ``begun``: a part of what was asked may have been done.

    Enough for a change whose statement asks Postgres once more (``require_writable()`` there).
    """
    refuse(switched_on(settings), begun=begun)


def require_heard(settings: LiveSettings) -> None:
    """Raise ``ReadOnly`` unless this node heard lately that changes are made."""
    refuse(refusal(settings))


def refuse(reason: str | None, *, begun: bool = False) -> None:
    if reason is not None:
        done = "It was done in part at most; repeat it later." if begun else "Nothing was changed; retry later."
        raise ReadOnly(f"{reason} {done}")


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
        if refusal(self._settings) is not None:
            return Step(idle=True)
        return await self._job.step()
