"""Range requests and conditional requests (RFC 9110, sections 13 and 14), as pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

SPEC = re.compile(r"([0-9]*)-([0-9]*)")
DIGITS_MAX = 18
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Unsatisfiable(Exception):
    """No range asked for lies in the representation."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Offsets of the first and the last byte, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1

    def content_range(self, size: int) -> str:
        return f"bytes {self.first}-{self.last}/{size}"


@dataclass(frozen=True, slots=True)
class Validators:
    """What identifies the representation a client may already have."""

    etag: str
    modified_at: datetime

    @property
    def last_modified(self) -> str:
        return http_date(self.modified_at)


def parse_ranges(header: str | None, size: int, *, ranges_max: int) -> list[ByteRange]:
    """Return the ranges asked for; none when the whole is to be sent.

    A header that is malformed, of another unit or asks for more than ``ranges_max`` ranges is
    ignored, as the RFC allows. Raises ``Unsatisfiable``.
    """
    if header is None or not header.lower().startswith("bytes="):
        return []
    specs = [spec.strip() for spec in header[6:].split(",")]
    specs = [spec for spec in specs if spec]
    if not specs or len(specs) > ranges_max:
        return []
    found = []
    for spec in specs:
        match = SPEC.fullmatch(spec)
        if match is None or spec == "-" or len(spec) > 2 * DIGITS_MAX:
            return []
        first, last = match.groups()
        if first and last and int(first) > int(last):
            return []
        part = one_range(first, last, size)
        if part is not None:
            found.append(part)
    if not found:
        raise Unsatisfiable
    return [] if sum(part.length for part in found) > 2 * size else found


def one_range(first: str, last: str, size: int) -> ByteRange | None:
    if not first:
        length = min(int(last), size)
        return ByteRange(size - length, size - 1) if length else None
    if int(first) >= size:
        return None
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1)


def is_not_modified(headers: Mapping[str, str], have: Validators) -> bool:
    """Say whether the client's copy is still right: 304. If-None-Match goes before If-Modified-Since."""
    if_none_match = headers.get("If-None-Match")
    if if_none_match is not None:
        return is_named(have.etag, if_none_match)
    since = parse_date(headers.get("If-Modified-Since"))
    return since is not None and have.modified_at.replace(microsecond=0) <= since


def is_named(etag: str, if_none_match: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def range_applies(headers: Mapping[str, str], have: Validators) -> bool:
    """Say whether If-Range lets the Range through: it must name exactly this representation."""
    if_range = headers.get("If-Range")
    if if_range is None:
        return True
    if if_range.startswith(('"', "W/")):
        return if_range == have.etag
    return parse_date(if_range) == have.modified_at.replace(microsecond=0)


def http_date(at: datetime) -> str:
    """Return a moment as HTTP writes it (RFC 9110, section 5.6.7), to the second."""
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    day, month = WEEKDAYS[utc.weekday()], MONTHS[utc.month - 1]
    return f"{day}, {utc.day:02} {month} {utc.year:04} {utc.hour:02}:{utc.minute:02}:{utc.second:02} GMT"


def parse_date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
