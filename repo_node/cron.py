"""Cron expressions of five fields, in UTC: which are right, and when one last came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

FIELDS = 5


def check_cron(expression: str) -> str:
    """Return an expression that can be used, or an empty one. Raises ``ValueError`` with what would be right."""
    if expression and (fault := find_fault(expression)):
        example = 'write minute, hour, day, month and day of the week, in UTC, for example "30 2 * * SUN"'
        raise ValueError(f"{fault}: {example}")
    return expression


def find_fault(expression: str) -> str | None:
    """Return what is wrong with an expression, None when nothing is."""
    if (fields := len(expression.split())) != FIELDS:
        return f"{fields} fields instead of {FIELDS}"
    try:
        never = next(CronSim(expression, datetime.now(UTC), reverse=True), None) is None
    except CronSimError as error:
        return str(error).lower()
    return "it never comes" if never else None


def last_time(expression: str, now: datetime) -> datetime | None:
    """Return the last time at or before ``now`` at which an expression came; None for one that never comes."""
    try:
        # It gives what is before, so the minute under way counts when it is over.
        until = now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        return next(CronSim(expression, until, reverse=True), None)
    except CronSimError:
        return None
