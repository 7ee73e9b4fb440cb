"""What has come to its end: tokens, used refresh tokens, wrong logins."""

from __future__ import annotations

from datetime import timedelta

from repo_node.db.garbage import as_primary
from repo_node.db.lease import Lease
from repo_node.db.pool import Database, Statement

FORGET = Statement("credentials_forget", "SELECT forget_credentials($1, $2, $3, $4, $5) AS gone")


async def forget(database: Database, lease: Lease, *, kept_days: float, lock_seconds: float, count: int) -> int:
    """Let go of tokens that ended ``kept_days`` ago and logins that no lock is about; return how many rows went.

    At most ``count`` of each kind. Raises ``NotPrimary``.
    """
    args = (timedelta(days=kept_days), timedelta(seconds=lock_seconds), count)
    row = await as_primary(database.write(FORGET, lease.epoch, lease.token, *args))
    return 0 if row is None else int(row["gone"])
