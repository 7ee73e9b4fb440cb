"""Cron expressions of five fields, in UTC: which are right, and when one last came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

FIELDS = 5


def check_cron(expression: str) -> str:
    """Return an expression that can be used, or an empty one. Raises ``ValueError`` with what would be right."""
    if expression and (len(expression.split()) != FIELDS or last_time(expression, datetime.now(UTC)) is None):
        raise ValueError('write minute, hour, day, month and day of the week, in UTC, for example "30 2 * * SUN"')
    return expression


def last_time(expression: str, now: datetime) -> datetime | None:
    """Return the last time at or before ``now`` at which an expression came; None for one that never comes."""
    try:
        # It gives what is before, so the minute under way counts when it is over.
        until = now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        return next(CronSim(expression, until, reverse=True), None)
    except CronSimError:
        return None
