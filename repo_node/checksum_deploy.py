"""The service for uploads without bytes: content that is known is linked, and what is not must be sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from repo_node.artifacts import Deployed, DeployRequest, Pulse
from repo_node.auth.read_scope import ReadScope
from repo_node.checksums import DeclaredDigests
from repo_node.db.known import KnownContent, Link, LinkOutcome
from repo_node.db.known_contents import KnownContents
from repo_node.db.repositories import Repository
from repo_node.errors import NotFound, RequestError
from repo_node.metrics import Metrics
from repo_node.outcome import until_known
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from sharding.identifiers import uuid7
from sharding.model import Generation
from sharding.provider import ShardingProvider


class SendTheBody(NotFound):
    """The content is not known, or not to this client, or not in copies enough: the bytes are wanted."""

    def __init__(self) -> None:
        # One answer for all three: who may not read content must not learn that it is here.
        super().__init__("File not found: no content with these checksums can be linked; send the body.")


class ChecksumDeploy:
    """Deploys what a client names by its checksums alone.

    Content counts as known only while some artifact has it that the client may read.
    """

    def __init__(
        self,
        known: KnownContents,
        store: ShardingProvider,
        repositories: Repositories,
        settings: LiveSettings,
        metrics: Metrics,
        recent: RecentItems,
        pulse: Pulse,
    ) -> None:
        self._known = known
        self._store = store
        self._repositories = repositories
        self._settings = settings
        self._metrics = metrics
        self._recent = recent
        self._pulse = pulse

    async def deploy(self, request: DeployRequest, scope: ReadScope) -> Deployed:
        """Make the declared content, if ``scope`` has it, visible at ``request.at``, or change nothing.

        Raises ``SendTheBody``, ``ChecksumMismatch``, ``NotFound``, ``PathConflict``, ``NotPermitted``,
        ``OutcomeUnknown``, ``CatalogueUnavailable``, ``ReadOnly``.
        """
        started_at = self._pulse.database_time()
        repository = await self._repositories.recall(request.at.repository)
        await self._repositories.require_room(repository, request.at)
        content = await self._find(request.declared, scope)
        with self._known.expect_link():
            present = await self._store.confirm(content.sha256, content.size, content.replicas)
        # Slow shards may have taken their time.
        require_writable(self._settings)
        policy = self._settings.now.write_policy(repository.redundancy)
        if content.size and len(present) < policy.quorum:
            raise SendTheBody
        link = Link(
            upload=uuid7(),
            started_at=started_at,
            repository_id=repository.id,
            folder=request.at.folder,
            name=request.at.name,
            properties_json=json.dumps(request.properties),
            by=request.by,
            blob_id=content.id,
            redundancy=policy.redundancy,
            copies_min=policy.quorum,
            zones_min=policy.zones_min,
            may_overwrite=request.may_overwrite,
        )
        try:
            created_at = await self._commit(link, present, repository)
        finally:
            self._recent.forget(request.at)
        self._metrics.uploads.labels(LinkOutcome.LINKED.value).inc()
        return Deployed(request.at, created_at, request.by.principal, content)

    async def _find(self, declared: DeclaredDigests, scope: ReadScope) -> KnownContent:
        """Return the content that is all that was declared, and that some artifact in ``scope`` has."""
        if not declared.names:
            raise RequestError("A checksum deploy needs a checksum: X-Checksum-Sha256, X-Checksum-Sha1 or -Md5.")
        name = declared.names[0]
        rows = None
        if not scope.everything:
            rows = scope.rows({one.id: one.key for one in await self._repositories.recall_all()})
        content = await self._known.find(name, getattr(declared, name), rows)
        # What was never computed cannot be compared: with the bytes it can.
        if content is None or any(getattr(content, other) is None for other in declared.names):
            raise SendTheBody
        declared.check(content)
        return content

    async def _commit(self, link: Link, present: Sequence[Generation], repository: Repository) -> datetime:
        done = await until_known(
            lambda: self._known.link(link, present), wait_seconds=self._settings.now.outcome_wait_seconds
        )
        outcome, created_at = done.result
        match outcome:
            case LinkOutcome.UNKNOWN:
                raise SendTheBody
            case LinkOutcome.NO_REPOSITORY:
                await self._repositories.explain_loss(repository)
        assert created_at is not None
        return created_at
