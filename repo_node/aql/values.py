"""Values as a query writes them, read as what their field holds."""

from __future__ import annotations

import binascii
import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta

from repo_node.aql.conditions import FieldTest, FieldValue
from repo_node.aql.fields import DIGEST_BYTES, Kind, kind_of
from repo_node.aql.tree import AqlError, Comparison, Operator, Value

WHOLE_MAX = 2**63 - 1
PERIOD = re.compile(r"([0-9]{1,12})\s*([a-z]+)")
PERIODS = {
    **dict.fromkeys(("ms", "mills", "millis", "milliseconds"), timedelta(milliseconds=1)),
    **dict.fromkeys(("s", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("mi", "min", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
    **dict.fromkeys(("w", "week", "weeks"), timedelta(weeks=1)),
}
MONTHS = {**dict.fromkeys(("mo", "month", "months"), 1), **dict.fromkeys(("y", "year", "years"), 12)}
RELATIVE = {Operator.BEFORE: Operator.LT, Operator.LAST: Operator.GTE}
EQUALITY = frozenset({Operator.EQ, Operator.NE})
ALIKE = frozenset({Operator.MATCH, Operator.NMATCH})
TEXTUAL = frozenset({Kind.REPOSITORY, Kind.FOLDER, Kind.TEXT, Kind.TYPE, *DIGEST_BYTES})


def test_of(asked: Comparison, now: datetime) -> FieldTest:
    """Return a comparison of a field with a value that it can have. Raises ``AqlError``."""
    kind, operator = kind_of(asked.field), asked.operator
    if operator in RELATIVE:
        if kind is not Kind.TIME or not isinstance(asked.value, str):
            raise AqlError(f'{operator} compares a time with a period such as "2w", which {asked.field} is not.')
        return FieldTest(asked.field, kind, RELATIVE[operator], moment_before(now, asked.value))
    if asked.value is None and operator not in EQUALITY:
        raise AqlError(f"{asked.field}: null is compared by $eq and $ne alone.")
    if operator in ALIKE and kind not in TEXTUAL:
        raise AqlError(f"{asked.field} is no text: {operator} does not compare it.")
    return FieldTest(asked.field, kind, operator, None if asked.value is None else read(asked, kind))


def read(asked: Comparison, kind: Kind) -> FieldValue:
    assert asked.value is not None
    match kind:
        case Kind.WHOLE | Kind.COUNT:
            return whole_of(asked.field, asked.value)
        case Kind.TIME:
            return time_of(asked.field, asked.value)
        case Kind.SHA256 | Kind.SHA1 | Kind.MD5:
            text = text_of(asked.value).lower() if asked.operator in EQUALITY else text_of(asked.value)
            return digest_of(text, kind) if asked.operator in EQUALITY else text
        case _:
            return text_of(asked.value)


def text_of(value: Value) -> str:
    """Return a value as text that Postgres can keep. Raises ``AqlError``."""
    text = value if isinstance(value, str) else f"{value:.9f}".rstrip("0") if isinstance(value, float) else str(value)
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise AqlError("A text has a NUL, or half of a surrogate pair.")
    return text


def whole_of(field: str, value: Value) -> int:
    text = str(value).strip() if isinstance(value, str | int) else ""
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or abs(int(text)) > WHOLE_MAX:
        raise AqlError(f"{field} is a whole number, not {str(value)[:40]!r}.")
    return int(text)


def digest_of(text: str, kind: Kind) -> bytes:
    """Return a digest from hex digits; what is none, and so equals none, as no bytes."""
    try:
        digest = binascii.unhexlify(text)
    except ValueError:
        return b""
    return digest if len(digest) == DIGEST_BYTES[kind] else b""


def time_of(field: str, value: Value) -> datetime:
    """Return a time in ISO 8601, in UTC where it names no zone, or in milliseconds since 1970. Raises ``AqlError``."""
    try:
        if isinstance(value, int):
            at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=value)
        else:
            at = datetime.fromisoformat(value if isinstance(value, str) else "")
            at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        # A moment at the ends of the calendar has no next one.
        at + timedelta(days=1), at - timedelta(days=1)
    except (ValueError, OverflowError):
        raise AqlError(f"{field} is a time such as 2026-01-31T12:00:00.000Z, not {str(value)[:40]!r}.") from None
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def moment_before(now: datetime, period: str) -> datetime:
    """Return the time a period such as ``2w`` before ``now``. Raises ``AqlError``."""
    found = PERIOD.fullmatch(period.strip().lower())
    count, unit = (int(found[1]), found[2]) if found else (0, "")
    try:
        if unit in PERIODS:
            return now - count * PERIODS[unit]
        if unit in MONTHS:
            year, month = divmod(now.year * 12 + now.month - 1 - count * MONTHS[unit], 12)
            return now.replace(year=year, month=month + 1, day=min(now.day, monthrange(year, month + 1)[1]))
    except (ValueError, OverflowError):
        pass
    raise AqlError(f"{period[:40]!r} is no period: a number with ms, s, minutes, d, w, mo or y, such as 2w.")
