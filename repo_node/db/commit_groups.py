"""Group commit of uploads: what comes while one statement is under way is committed by the next one, together.

Who comes while there is none waits for those that are being stored by then, and for nobody else: a statement for each
costs more than the wait. A lone upload is committed at once by its own statement, and a statement that takes its time
keeps nobody but its own from being committed beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg

from repo_node.db.blobs import CommitOutcome, CommitResult, Deployment, commit_upload
from repo_node.db.errors import OutcomeUnknown, RacesLost
from repo_node.db.pool import Database, Statement
from sharding.model import Generation, Replica
from sharding.tasks import stop

log = logging.getLogger("holdfast.database")

GROUP_UPLOADS_MAX = 64
LEAD_SECONDS = 0.1
"""How long a statement keeps those who come from beginning the next one."""

GIVEN_UP = "this node gave its commits up"

COMMIT_GROUP = Statement(
    "upload_commit_group",
    """
    SELECT committed, created_at
      FROM require_writable(),
           commit_new_uploads($1, $2, $3, $4, $5, $6, $7::jsonb[], $8, $9, $10, $11, $12, $13, $14, $15,
                              $16::smallint[], $17, $18::smallint[], $19, $20)
    """,
)


@dataclass(frozen=True, slots=True)
class UploadToCommit:
    """A deployment, its durable copies, and what else its commit is told. ``short`` asks for a repair."""

    deployment: Deployment
    replicas: Sequence[Replica]
    properties_json: str
    age_max_seconds: float
    short: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """An upload and its result, None for one that has to be committed by itself."""

    upload: UploadToCommit
    result: asyncio.Future[CommitResult | None]


class Expected:
    """An upload that is being stored. A context manager: behind it, its commit is asked for, or it has failed."""

    __slots__ = ("_groups",)

    def __init__(self, groups: CommitGroups) -> None:
        self._groups = groups

    def __enter__(self) -> None:
        self._groups.expected.add(self)

    def __exit__(self, *_: object) -> None:
        self._groups.expected.discard(self)
        self._groups.awaited.discard(self)


class CommitGroups:
    """Commits the uploads of one node. Each has its own result or error, whoever it was committed with.

    ``gather_seconds`` gives how long one that has come waits at most for those that are expected; ``observe`` is told
    how many a statement is to commit.
    """

    def __init__(
        self,
        database: Database,
        gather_seconds: Callable[[], float] = lambda: 0,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.expected: set[Expected] = set()
        self.awaited: set[Expected] = set()
        """Of those that are expected, the ones that a group waits for."""
        self._database = database
        self._gather_seconds = gather_seconds
        self._observe = observe
        self._waiting: deque[Waiting] = deque()
        self._lead: asyncio.TimerHandle | None = None
        """Held by the statement that others wait for, or by a group that gathers; nobody waits when there is none."""
        self._gathers = False
        self._statements: set[asyncio.Task[None]] = set()

    def expect(self) -> Expected:
        """Return what is to be held while an upload is being stored that will be committed soon."""
        return Expected(self)

    async def commit(self, upload: UploadToCommit, confirmed: Sequence[Generation] | None = None) -> CommitResult:
        """Make an upload visible; safe to repeat with the same upload id.

        Arguments, results and errors as those of ``commit_upload``.
        """
        if upload.short or confirmed is not None:
            return await self._commit_alone(upload, confirmed)
        if self._lead is None and not self.expected:
            lead = self._take_lead()
            try:
                return await self._commit_alone(upload)
            finally:
                self._pass_on(lead)
        waiting = Waiting(upload, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._gather()
        result = await waiting.result
        return await self._commit_alone(upload) if result is None else result

    def _gather(self) -> None:
        """Begin to wait for those that are expected, unless a statement is waited for; go on when all have come."""
        if self._lead is None:
            self._take_lead(self._gather_seconds())
            self._gathers, self.awaited = True, set(self.expected)
        elif self._gathers and not self.awaited:
            self._pass_on(self._lead)

    def _take_lead(self, seconds: float = LEAD_SECONDS) -> asyncio.TimerHandle:
        """Have those who come wait until ``_pass_on``, or for ``seconds``."""
        lead: asyncio.TimerHandle = asyncio.get_running_loop().call_later(seconds, lambda: self._pass_on(lead))
        self._lead = lead
        return lead

    def _pass_on(self, lead: asyncio.TimerHandle) -> None:
        """Commit those who wait, unless another statement has the lead by now."""
        lead.cancel()
        if self._lead is not lead:
            return
        self._lead, self._gathers = None, False
        if group := self._take():
            statement = asyncio.create_task(self._settle(group, self._take_lead()))
            self._statements.add(statement)
            statement.add_done_callback(self._statements.discard)

    async def _commit_alone(
        self, upload: UploadToCommit, confirmed: Sequence[Generation] | None = None
    ) -> CommitResult:
        self._observe(1)
        return await commit_upload(
            self._database,
            upload.deployment,
            upload.replicas,
            age_max_seconds=upload.age_max_seconds,
            properties_json=upload.properties_json,
            short=upload.short,
            confirmed=confirmed,
        )

    def _take(self) -> list[Waiting]:
        """Return those who wait, up to one whose content or path another one of the group has too."""
        group: list[Waiting] = []
        contents: set[bytes] = set()
        paths: set[tuple[int, str, str]] = set()
        while self._waiting and len(group) < GROUP_UPLOADS_MAX:
            first = self._waiting[0]
            deployment = first.upload.deployment
            content, path = deployment.digests.sha256, (deployment.repository_id, deployment.folder, deployment.name)
            if content in contents or path in paths:
                break
            self._waiting.popleft()
            if first.result.done():  # given up meanwhile
                continue
            contents.add(content)
            paths.add(path)
            group.append(first)
        return group

    async def _settle(self, group: Sequence[Waiting], lead: asyncio.TimerHandle) -> None:
        """Commit a group and tell everybody in it; raises nothing."""
        try:
            if len(group) == 1:
                results: Sequence[CommitResult | None] = [await self._commit_alone(group[0].upload)]
            else:
                results = await self._commit_together([waiting.upload for waiting in group])
        except asyncio.CancelledError:
            self._fail(group, OutcomeUnknown(GIVEN_UP))
            raise
        except Exception as error:
            self._fail(group, error)
        else:
            for waiting, result in zip(group, results, strict=True):
                if not waiting.result.done():
                    waiting.result.set_result(result)
        finally:
            self._pass_on(lead)

    def _fail(self, group: Iterable[Waiting], error: Exception) -> None:
        for waiting in group:
            if not waiting.result.done():
                waiting.result.set_exception(copy(error))  # each raises its own

    async def _commit_together(self, uploads: Sequence[UploadToCommit]) -> list[CommitResult | None]:
        """Commit those that are plain in one statement, and return None for the others."""
        results: list[CommitResult | None] = [None for _ in uploads]
        self._observe(len(uploads))
        try:
            row: Any = await self._database.write(COMMIT_GROUP, *columns(uploads), attempts=1)
        except (RacesLost, asyncpg.PostgresError) as error:
            # One of them, or a lock, ended it for all, and nothing was done. Each hears by itself what is wrong.
            log.info("a group of uploads is committed one by one", extra={"facts": {"cause": str(error)}})
            return results
        for number, created_at in zip(row["committed"] or (), row["created_at"] or (), strict=True):
            results[number - 1] = CommitResult(CommitOutcome.ADOPTED, created_at, ())
        return results

    async def close(self) -> None:
        """Give up what is under way: the outcome of its uploads is unknown."""
        self._fail(self._waiting, OutcomeUnknown(GIVEN_UP))
        self._waiting.clear()
        await stop(tuple(self._statements))


def columns(uploads: Sequence[UploadToCommit]) -> tuple[Any, ...]:
    """Return the arguments of ``commit_new_uploads``, which counts uploads from 1."""
    deployments = [upload.deployment for upload in uploads]
    digests = [deployment.digests for deployment in deployments]
    copies = [(number, replica) for number, upload in enumerate(uploads, 1) for replica in upload.replicas]
    return (
        timedelta(seconds=min(upload.age_max_seconds for upload in uploads)),
        [deployment.upload for deployment in deployments],
        [deployment.started_at for deployment in deployments],
        [deployment.repository_id for deployment in deployments],
        [deployment.folder for deployment in deployments],
        [deployment.name for deployment in deployments],
        [upload.properties_json for upload in uploads],
        [deployment.by.principal for deployment in deployments],
        [deployment.by.request_id for deployment in deployments],
        [deployment.blob_uid for deployment in deployments],
        [digest.sha256 for digest in digests],
        [digest.sha1 for digest in digests],
        [digest.md5 for digest in digests],
        [digest.size for digest in digests],
        [digest.blocks for digest in digests],
        [deployment.redundancy for deployment in deployments],
        [number for number, _ in copies],
        [replica.shard for _, replica in copies],
        [replica.generation for _, replica in copies],
        [deployment.by.address for deployment in deployments],
    )
