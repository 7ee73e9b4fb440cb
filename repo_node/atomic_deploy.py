"""The service that makes several uploads visible at one moment, when the copies of all of them are durable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import starmap

from repo_node.artifacts import Durable
from repo_node.db.atomic_commits import DONE, commit_together
from repo_node.db.blobs import CommitOutcome, CommitResult
from repo_node.db.commit_groups import UploadToCommit
from repo_node.db.errors import OutcomeUnknown
from repo_node.db.pool import Database
from repo_node.errors import Overloaded, RequestError
from repo_node.metrics import Metrics
from repo_node.outcome import until_known
from repo_node.read_only import require_writable
from repo_node.recent import RecentItems
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from sharding.crash_points import crash_point
from sharding.model import Generation
from sharding.provider import ShardingProvider
from sharding.tasks import run_all

ROUNDS_MAX = 20
"""How often content may turn out to be known after all before the client has to come again."""

PROVED_AT_ONCE = 16


class AtomicDeploy:
    """Commits uploads that ``Artifacts.make_durable`` has stored."""

    def __init__(
        self,
        database: Database,
        store: ShardingProvider,
        repositories: Repositories,
        settings: LiveSettings,
        metrics: Metrics,
        recent: RecentItems,
    ) -> None:
        self._database = database
        self._store = store
        self._repositories = repositories
        self._settings = settings
        self._metrics = metrics
        self._recent = recent

    async def commit(self, uploads: Sequence[Durable]) -> None:
        """Make all visible, or none. Their files stay where they are referred to, or might be; else they go.

        Raises ``PathConflict``, ``NotFound``, ``OutcomeUnknown``, ``CatalogueUnavailable``, ``ReadOnly``.
        """
        if not uploads:
            return
        # The order in which blobs are locked.
        uploads = sorted(uploads, key=lambda upload: upload.deployment.digests.sha256)
        try:
            results, doubted = await self._until_done(uploads)
        except OutcomeUnknown:
            self._metrics.uploads.labels("unknown").inc(len(uploads))
            raise
        except Exception:
            self.drop(uploads)
            self._metrics.uploads.labels("refused").inc(len(uploads))
            raise
        finally:
            for upload in uploads:
                self._recent.forget(upload.at)
        crash_point("explode.committed")
        outcomes = {result.outcome for result in results}
        if refused := outcomes - DONE:
            # One refusal undid them all, those too that would have been adopted.
            self._metrics.uploads.labels("refused").inc(len(uploads))
            if not doubted:
                self.drop(uploads)
            if CommitOutcome.NO_REPOSITORY in refused:
                await self._repositories.explain_loss(uploads[0].repository)
            raise RequestError("The upload took longer than upload_seconds_max; start it anew.", status=408)
        for upload, result in zip(uploads, results, strict=True):
            self._metrics.uploads.labels(result.outcome.value).inc()
            if result.outcome is CommitOutcome.DEDUPLICATED:
                self.drop([upload])

    def drop(self, uploads: Sequence[Durable]) -> None:
        """Remove files that nothing refers to, nor ever will."""
        for upload in uploads:
            self._store.drop(upload.deployment.digests.sha256, upload.placement.replicas)

    async def _until_done(self, uploads: Sequence[Durable]) -> tuple[list[CommitResult], bool]:
        """Commit, each time with more of the known content proved, and return the last results.

        They come with whether an attempt was in doubt.
        """
        confirmed: dict[bytes, list[Generation]] = {}
        rows, doubted = [self._row(upload) for upload in uploads], False
        for _ in range(ROUNDS_MAX):
            require_writable(self._settings)
            try:
                known = await until_known(
                    lambda: commit_together(self._database, rows, confirmed),
                    wait_seconds=self._settings.now.outcome_wait_seconds,
                )
            except Exception as error:
                if doubted:
                    raise OutcomeUnknown("an attempt that never answered may still arrive") from error
                raise
            doubted |= known.doubted
            unproved = [
                (upload, result)
                for upload, result in zip(uploads, known.result, strict=True)
                if result.outcome is CommitOutcome.CONFIRM
            ]
            if not unproved:
                return known.result, doubted
            for start in range(0, len(unproved), PROVED_AT_ONCE):
                some = unproved[start : start + PROVED_AT_ONCE]
                for (upload, _), proved in zip(some, await run_all(starmap(self._prove, some)), strict=True):
                    confirmed[upload.deployment.digests.sha256] = proved
        if doubted:
            raise OutcomeUnknown("an attempt that never answered may still arrive")
        raise Overloaded("Others store the same content at this moment; retry.")

    def _row(self, upload: Durable) -> UploadToCommit:
        return UploadToCommit(
            upload.deployment,
            upload.placement.replicas,
            properties_json=json.dumps(upload.deployment.properties),
            age_max_seconds=self._settings.now.upload_seconds_max,
            short=upload.placement.short,
        )

    async def _prove(self, upload: Durable, result: CommitResult) -> list[Generation]:
        digests = upload.deployment.digests
        present = await self._store.confirm(digests.sha256, digests.size, result.existing)
        return await self._store.prove(digests, [one for one in result.existing if one.generation in present])
