"""Cron expressions: what is one, and when one last came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from repo_node.cron import check_cron, last_time
from repo_node.settings import SettingError, combine

NOW = datetime(2031, 5, 4, 3, 0, 30, tzinfo=UTC)  # a Sunday


@pytest.mark.parametrize("expression", ["", "0 3 * * *", "*/5 * * * *", "30 2 * * SUN", "0 0 L * *", "0 3 29 2 *"])
def test_what_comes_some_day_is_right(expression: str) -> None:
    assert check_cron(expression) == expression
    assert combine({"gc_cron": expression}).gc_cron == expression


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("x", "1 fields"),
        ("@daily", "1 fields"),
        ("0 3 * *", "4 fields"),
        ("* * * * * *", "6 fields"),
        ("61 * * * *", "bad minute"),
        ("0 3 * 13 *", "bad month"),
        ("0 3 30 2 *", "bad day-of-month"),
        (" ", "0 fields"),
    ],
)
def test_what_is_none_is_refused_with_its_fault_and_an_example(expression: str, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^{fault}.* in UTC, for example"):
        check_cron(expression)
    for name in ("gc_cron", "trash_cron", "backup_cron", "reconcile_cron"):
        with pytest.raises(SettingError, match=rf"^{name}: .*for example"):
            combine({name: expression})


@pytest.mark.parametrize(
    ("expression", "last"),
    [
        ("0 3 * * *", datetime(2031, 5, 4, 3, 0, tzinfo=UTC)),
        ("1 3 * * *", datetime(2031, 5, 3, 3, 1, tzinfo=UTC)),
        ("* * * * *", datetime(2031, 5, 4, 3, 0, tzinfo=UTC)),
        ("30 2 * * MON", datetime(2031, 4, 28, 2, 30, tzinfo=UTC)),
        ("0 3 29 2 *", datetime(2028, 2, 29, 3, 0, tzinfo=UTC)),
    ],
)
def test_last_time_is_at_or_before_now(expression: str, last: datetime) -> None:
    assert last_time(expression, NOW) == last
    assert last_time(expression, NOW.astimezone(timezone(timedelta(hours=5)))) == last, "in UTC, wherever it is asked"


def test_time_comes_with_its_minute_and_not_before() -> None:
    at = datetime(2031, 5, 4, 3, 0, tzinfo=UTC)
    assert last_time("0 3 * * *", at - timedelta(microseconds=1)) == at - timedelta(days=1)
    assert last_time("0 3 * * *", at) == at
