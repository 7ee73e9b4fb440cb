"""The job that keeps backups of the database on the shards themselves, on as many nodes as a blob has copies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from repo_node.backups.backup import write_snapshot
from repo_node.db import backups
from repo_node.db.pool import Database
from repo_node.metrics.audits import AuditMetrics
from repo_node.settings import LiveSettings
from sharding.backups import ShardBackups
from sharding.errors import ShardError, ShardUnavailable
from sharding.local import LocalShard
from sharding.maintenance.job import Step
from sharding.model import NodeId, ShardId

log = logging.getLogger("holdfast.backup")


class ScheduledBackup:
    """Writes a backup to the roomiest own shard when it is due, and lets the oldest there go."""

    name = "backup"

    def __init__(
        self,
        node: NodeId,
        shards: Mapping[ShardId, LocalShard],
        database: Database,
        settings: LiveSettings,
        metrics: AuditMetrics,
    ) -> None:
        self._node = node
        self._shards = shards
        self._database = database
        self._settings = settings
        self._metrics = metrics

    async def step(self) -> Step:
        now = self._settings.now
        if not now.backups_kept or not self._shards:
            return Step(idle=True)
        # By schedule it is asked for, as an operator asks.
        period_seconds = None if now.backup_cron else now.backup_period_seconds
        began_at = await backups.due(self._database, self._node, now.redundancy, period_seconds)
        if began_at is None:
            return Step(idle=True)
        name = name_of(began_at)
        shard = await self._roomiest()
        count_bytes = await self._write(shard, name)
        kept = await shard.run(ShardBackups(shard.files).keep, now.backups_kept)
        await backups.record(self._database, shard.id, name, count_bytes, kept, began_at)
        self._metrics.observe_backup(count_bytes)
        log.info("backed up", extra={"facts": {"shard": shard.id, "name": name, "bytes": count_bytes}})
        return Step(done=1, moved_bytes=count_bytes, idle=True)

    async def _roomiest(self) -> LocalShard:
        """Return the own shard with the most room. Raises ``ShardError`` when none can be asked."""
        best: tuple[int, LocalShard] | None = None
        last: ShardError | None = None
        for shard in list(self._shards.values()):
            try:
                free = (await shard.space()).free_bytes
            except ShardError as error:
                last = error
                continue
            if best is None or free > best[0]:
                best = (free, shard)
        if best is None:
            assert last is not None
            raise last
        return best[1]

    async def _write(self, shard: LocalShard, name: str) -> int:
        """Write a backup and return its bytes. One that is not finished is replaced by the next."""

        def check() -> None:
            if self._shards.get(shard.id) is not shard:
                raise ShardUnavailable(shard.id, "it was given up while a backup was being written to it")

        keeper = ShardBackups(shard.files)
        file = await shard.run(keeper.create)
        try:
            async with asyncio.timeout(self._settings.now.backup_seconds_max), self._database.apart() as connection:
                await write_snapshot(connection, file, lambda table, rows: None, check)
        finally:
            try:
                await shard.run(file.close)
            except ShardUnavailable:
                # Its threads have ended: the disk could not be unmounted while the file is open.
                await asyncio.to_thread(file.close)
        return await shard.run(keeper.publish, name)


def name_of(began_at: datetime) -> str:
    """Return the name of a backup; names sort as their times."""
    at = began_at.astimezone(UTC)
    return f"holdfast-{at:%Y-%m-%dT%H-%M-%S}-{at.microsecond // 1000:03d}Z.backup"
