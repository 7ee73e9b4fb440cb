"""The service for artifacts: every upload of every format ends in ``deploy``, every download begins in ``open``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from repo_node.blob_catalogue import CatalogueOfBlob
from repo_node.checksums import Content, DeclaredDigests
from repo_node.db import artifacts as rows
from repo_node.db.artifacts import Blob, Child, Item
from repo_node.db.blobs import CommitOutcome, CommitResult, Deployment
from repo_node.db.commit_groups import CommitGroups, UploadToCommit
from repo_node.db.errors import AbsenceInDoubt, CatalogueUnavailable, OutcomeUnknown
from repo_node.db.lookups import LookUps
from repo_node.db.pool import Database
from repo_node.db.repositories import Repository
from repo_node.errors import BodyTooLarge, NotFound, Overloaded, RequestError, absent
from repo_node.metrics import Metrics
from repo_node.origin import Origin
from repo_node.outcome import Known, until_known
from repo_node.paths import ArtifactPath
from repo_node.read_only import require_writable
from repo_node.recent import Found, RecentItems
from repo_node.repositories import Repositories, no_repository
from repo_node.settings import LiveSettings
from sharding.background import Background
from sharding.commit import Placement
from sharding.crash_points import crash_point
from sharding.identifiers import uuid7
from sharding.model import EXTRA_DIGESTS, Buffer
from sharding.provider import ShardingProvider
from sharding.reader import BlobReader, BlobToRead
from sharding.tally import WritePolicy
from sharding.upload import Upload

REPORTS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """Where an upload goes, who sends it, and what they say of it."""

    at: ArtifactPath
    by: Origin
    properties: Mapping[str, Sequence[str]]
    declared: DeclaredDigests
    may_overwrite: bool = True
    """Whether another artifact may be in the place."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """An acknowledged upload."""

    at: ArtifactPath
    created_at: datetime
    created_by: str
    content: Content


@dataclass(frozen=True, slots=True)
class Durable:
    """An upload whose copies are durable, and of which Postgres knows nothing yet."""

    at: ArtifactPath
    repository: Repository
    deployment: Deployment
    placement: Placement


class Pulse(Protocol):
    """What a node's heartbeats tell."""

    @property
    def is_fresh(self) -> bool:
        """Whether heartbeats and announcements come back."""
        ...

    @property
    def silence_seconds(self) -> float:
        """How long ago the last heartbeat came back, or was refused with a reason."""
        ...

    def database_time(self) -> datetime:
        """Return the database's time without asking it, rather too early than too late."""
        ...


class RepositoryGone(Exception):
    """The commit of an upload found no repository of the id that the upload was for."""


class Artifacts:
    """Uploads, downloads, listings and deletions.

    ``pulse`` tells of this node's heartbeats: while they don't come back, Postgres does not know what is absent.
    """

    def __init__(
        self,
        database: Database,
        look_ups: LookUps,
        store: ShardingProvider,
        repositories: Repositories,
        settings: LiveSettings,
        metrics: Metrics,
        recent: RecentItems,
        pulse: Pulse,
    ) -> None:
        self._database = database
        self._look_ups = look_ups
        self._store = store
        self._repositories = repositories
        self._recent = recent
        self._pulse = pulse
        self._settings = settings
        self._metrics = metrics
        self._commits = CommitGroups(
            database,
            lambda: settings.now.commit_gather_milliseconds / 1000,
            metrics.commit_group_uploads.labels().observe,
        )
        self._reports = Background(REPORTS_MAX)
        self._uploads = 0
        metrics.uploads_in_flight.set_function(lambda: self._uploads)

    # ------------------------------------------------------------------ uploads

    async def deploy(
        self, request: DeployRequest, body: AsyncIterator[Buffer], *, length: int | None = None
    ) -> Deployed:
        """Store ``body``, of ``length`` where it is known, and make it visible at ``request.at``, or change nothing.

        Raises ``NotFound``, ``ChecksumMismatch``, ``BodyTooLarge``, ``PathConflict``, ``NotPermitted``,
        ``WriteQuorumNotMet``, ``OutcomeUnknown``, ``CatalogueUnavailable``, ``Overloaded``, ``ReadOnly``.
        """
        with self._counted():
            repository, started_at, policy, extra = await self._terms(request)
            async with self._store.open_upload(policy, extra, length) as upload:
                durable = await self._store_all(upload, request, body, repository, started_at, self._make_durable)
                began = time.perf_counter()
                try:
                    created_at = await self._commit(durable.deployment, durable.placement)
                except RepositoryGone:
                    await self._repositories.explain_loss(repository)
                finally:
                    self._recent.forget(request.at)
                self._stage("commit", began)
                return Deployed(request.at, created_at, request.by.principal, durable.deployment.digests)

    async def make_durable(self, request: DeployRequest, body: AsyncIterator[Buffer], *, length: int) -> Durable:
        """Do all of ``deploy`` but what makes it visible: its files are the caller's, to refer to or to drop."""
        with self._counted():
            repository, started_at, policy, extra = await self._terms(request)
            async with self._store.open_upload(policy, extra, length) as upload:
                return await self._store_all(upload, request, body, repository, started_at, self._store.commit)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._uploads >= self._settings.now.uploads_in_flight_max:
            raise Overloaded("This node runs as many uploads as it may; retry.")
        self._uploads += 1
        try:
            with self._metrics.uploads_in_flight.track_inprogress():
                yield
        finally:
            self._uploads -= 1

    async def _terms(self, request: DeployRequest) -> tuple[Repository, datetime, WritePolicy, frozenset[str]]:
        """Return the repository, the database's time, and how the bytes are to be written and hashed."""
        repository, started_at = await self._repositories.recall(request.at.repository), self._pulse.database_time()
        extra = EXTRA_DIGESTS.intersection((*repository.digests, *request.declared.names))
        return repository, started_at, self._settings.now.write_policy(repository.redundancy), extra

    async def _store_all(
        self,
        upload: Upload,
        request: DeployRequest,
        body: AsyncIterator[Buffer],
        repository: Repository,
        started_at: datetime,
        make_durable: Callable[[Upload], Awaitable[Placement]],
    ) -> Durable:
        """Receive the body, compare what was declared, and make the copies durable."""
        began = time.perf_counter()
        await self._receive(upload, body)
        digests = await upload.finish()
        request.declared.check(digests)
        # It may have become read-only while the body came.
        require_writable(self._settings)
        crash_point("upload.staged")
        began = self._stage("receive", began)
        placement = await make_durable(upload)
        crash_point("upload.durable")
        self._stage("store", began)
        deployment = Deployment(
            upload=uuid7(),
            started_at=started_at,
            repository_id=repository.id,
            folder=request.at.folder,
            name=request.at.name,
            properties=request.properties,
            by=request.by,
            blob_uid=upload.uid,
            digests=digests,
            redundancy=upload.policy.redundancy,
            may_overwrite=request.may_overwrite,
        )
        return Durable(request.at, repository, deployment, placement)

    async def _make_durable(self, upload: Upload) -> Placement:
        # What is large may take much longer than the commit of those that would wait for it.
        with nullcontext() if upload.small is None else self._commits.expect():
            return await self._store.commit(upload)

    def _stage(self, stage: str, began: float) -> float:
        now = time.perf_counter()
        self._metrics.upload_seconds.labels(stage).observe(now - began)
        return now

    def heed_silence(self) -> None:
        """Raise ``CatalogueUnavailable`` when Postgres has been away too long for an upload to go on.

        Rather now than when the rest of a large body has been sent in vain.
        """
        if (silence_seconds := self._pulse.silence_seconds) > self._settings.now.upload_silence_seconds_max:
            raise CatalogueUnavailable(f"no heartbeat reached Postgres for {silence_seconds:.0f} s of an upload")

    async def _receive(self, upload: Upload, body: AsyncIterator[Buffer]) -> None:
        limit = self._settings.now.body_bytes_max
        async for piece in body:
            self.heed_silence()
            if upload.size + len(piece) > limit:
                raise BodyTooLarge(f"The body is larger than {limit} bytes (setting body_bytes_max).")
            await upload.write(piece)
            # The next one is waited for without it.
            del piece

    async def _commit(self, deployment: Deployment, placement: Placement) -> datetime:
        """Write the rows. Our files stay when they are referred to, or might be; else they go."""
        try:
            known = await self._commit_rows(deployment, placement)
        except OutcomeUnknown:
            self._metrics.uploads.labels("unknown").inc()
            raise
        except Exception:
            self._store.drop(deployment.digests.sha256, placement.replicas)
            self._metrics.uploads.labels("refused").inc()
            raise
        crash_point("upload.committed")
        result = known.result
        # A refusal after a doubt settles nothing: the attempt that never answered may still arrive.
        settled = result.outcome is CommitOutcome.DEDUPLICATED or not known.doubted
        if result.outcome is not CommitOutcome.ADOPTED and settled:
            self._store.drop(deployment.digests.sha256, placement.replicas)
        self._metrics.uploads.labels(result.outcome.value).inc()
        match result.outcome:
            case CommitOutcome.TOO_OLD:
                raise RequestError("The upload took longer than upload_seconds_max; start it anew.", status=408)
            case CommitOutcome.NO_REPOSITORY:
                raise RepositoryGone
        if placement.short:
            self._metrics.short_writes.inc()
        assert result.created_at is not None
        return result.created_at

    async def _commit_rows(self, deployment: Deployment, placement: Placement) -> Known[CommitResult]:
        # Slow shards may have taken their time. Not later: a commit that was sent once is asked to its end.
        require_writable(self._settings)
        now, digests = self._settings.now, deployment.digests
        upload = UploadToCommit(
            deployment,
            placement.replicas,
            properties_json=json.dumps(deployment.properties) if deployment.properties else "{}",
            age_max_seconds=now.upload_seconds_max,
            short=placement.short,
        )
        first = await until_known(lambda: self._commits.commit(upload), wait_seconds=now.outcome_wait_seconds)
        if first.result.outcome is not CommitOutcome.CONFIRM:
            return first
        # Right in size is not right: a copy that rotted would cost the content with the only good bytes at hand.
        present = await self._store.confirm(digests.sha256, digests.size, first.result.existing)
        existing = [replica for replica in first.result.existing if replica.generation in present]
        confirmed = await self._store.prove(digests, existing)
        second = await until_known(
            lambda: self._commits.commit(upload, confirmed), wait_seconds=now.outcome_wait_seconds
        )
        return Known(second.result, first.doubted or second.doubted)

    # ------------------------------------------------------------------ downloads

    async def get(self, at: ArtifactPath) -> Item:
        """Return the artifact or folder at a path. Raises ``NotFound``, ``CatalogueUnavailable``."""
        settings = self._settings.now
        if self._pulse.silence_seconds > max(settings.stale_seconds_max, settings.node_down_seconds):
            # What answers may be a server that a failover has left behind.
            raise CatalogueUnavailable("Postgres has confirmed no heartbeat for too long to be believed")
        found = await self._look_ups.resolve(at)
        if found.item is not None:
            return found.item
        missing = no_repository(at.repository) if found.repository_id is None else NotFound("File not found.")
        raise absent(missing, fresh=self._pulse.is_fresh)

    async def get_lately(self, at: ArtifactPath) -> Found:
        """Return what is at a path or, while Postgres is away, what it told of it lately. Errors as ``get``."""
        mark, asked_at, fresh = self._recent.mark(at), time.monotonic(), self._pulse.is_fresh
        try:
            item = await self._ask(at, patiently=fresh)
        except (NotFound, AbsenceInDoubt):
            # In doubt too: what Postgres may well have seen deleted must not come back.
            self._recent.forget(at)
            raise
        except (CatalogueUnavailable, TimeoutError) as error:
            if (known := self._recent.find(at)) is None or self._has_been_heard_since(asked_at):
                raise CatalogueUnavailable(str(error) or "Postgres did not answer in time") from error
            self._metrics.stale_reads.inc()
            return known
        if fresh:
            self._recent.keep(at, item, mark, asked_at)
        elif (silence_seconds := self._pulse.silence_seconds) > self._settings.now.node_down_seconds:
            self._metrics.stale_reads.inc()
            return Found(item, silence_seconds)
        return Found(item)

    def _has_been_heard_since(self, asked_at: float) -> bool:
        """Say whether Postgres is there, and only this node's pool has no connection to it that works."""
        return self._pulse.is_fresh and self._pulse.silence_seconds < time.monotonic() - asked_at

    async def _ask(self, at: ArtifactPath, *, patiently: bool) -> Item:
        """Ask Postgres; where memory could answer too, for ``stale_after_seconds`` in the end.

        One failure while heartbeats come back says little: a single connection may have broken.
        """
        if patiently or self._recent.find(at) is None:
            try:
                return await self.get(at)
            except AbsenceInDoubt:
                raise
            except CatalogueUnavailable:
                if self._recent.find(at) is None:
                    raise
        async with asyncio.timeout(self._settings.now.stale_after_seconds):
            return await self.get(at)

    def open(self, blob: Blob) -> BlobReader:
        """Return a reader of the artifact's bytes."""
        catalogue = CatalogueOfBlob(self._database, blob, self._reports, self._metrics)
        return self._store.read(BlobToRead(blob.sha256, blob.size, blob.replicas), catalogue)

    # ------------------------------------------------------------------ folders, deletion

    async def children(self, at: ArtifactPath) -> AsyncGenerator[list[Child], None]:
        """Yield what lies directly in a folder, or in a repository, in pages, at least one.

        Raises ``NotFound``, ``CatalogueUnavailable``.
        """
        repository = await self._repositories.get(at.repository)
        async with aclosing(rows.children(self._database, repository.id, at.path)) as pages:
            async for page in pages:
                yield page

    async def make_folder(self, at: ArtifactPath, *, by: Origin) -> Item:
        """Make a folder and its ancestors; one that exists is no error. Raises ``PathConflict``, ``NotFound``."""
        repository = await self._repositories.get(at.repository)
        await rows.make_folder(self._database, repository.id, at.path, by=by)
        return await self.get(at)

    async def delete(self, at: ArtifactPath, *, by: Origin, folders: bool = True) -> None:
        """Delete an artifact or, with ``folders``, a folder with everything in it.

        Raises ``NotFound``, ``NotPermitted``, ``CatalogueUnavailable``, ``ReadOnly``.
        """
        repository = await self._repositories.get(at.repository)
        try:
            gone = await rows.delete(
                self._database,
                repository.id,
                at.folder,
                at.name,
                by=by,
                folders=folders,
                check=lambda: require_writable(self._settings, begun=True),
            )
        finally:
            self._recent.forget_tree(at)
        if not gone:
            missing = NotFound(f"Could not locate artifact '{at.repository}:{at.path}'. File not found.")
            raise absent(missing, fresh=self._pulse.is_fresh)

    async def close(self) -> None:
        await self._commits.close()
        await self._reports.close(wait_seconds=2)
