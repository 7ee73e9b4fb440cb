"""What AQL means, as plainly as it can be said: a query read over items in memory, one by one."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from repo_node.aql.tree import Comparison, Criterion, Group, Join, Operator, Query

NEGATIVE = {Operator.NE: Operator.EQ, Operator.NMATCH: Operator.MATCH}
LITERAL = {"*": "\ue000", "?": "\ue001", "\\": "\ue002"}
PERIODS = {"d": timedelta(days=1), "w": timedelta(weeks=1), "minutes": timedelta(minutes=1)}


@dataclass(frozen=True)
class Thing:
    """An artifact, or a folder where ``sha1`` is None."""

    repo: str
    folder: str
    name: str
    size: int
    sha1: bytes | None
    created: datetime
    created_by: str
    properties: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    downloads: int = 0
    downloaded: datetime | None = None
    seen_in: str | None = None
    """Another name of the repository: that of a virtual one which shows this."""

    @property
    def place(self) -> tuple[str, str, str]:
        return self.repo, self.folder, self.name

    def value(self, name: str) -> Any:
        match name:
            case "path":
                return self.folder or "."
            case "type":
                return "folder" if self.sha1 is None else "file"
            case "depth":
                return len(self.folder.split("/")) + 1 if self.folder else 1
            case "actual_sha1":
                return None if self.sha1 is None else self.sha1.hex()
            case "stat.downloads":
                return self.downloads
            case "stat.downloaded":
                return self.downloaded
            case "stat.remote_downloads":
                return 0
            case "stat.remote_path":
                return None
            case _:
                return getattr(self, name)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(key, value) for key, values in self.properties.items() for value in values]


def found(query: Query, things: Sequence[Thing], now: datetime) -> list[Thing]:
    """Return what the query finds, in no order, before offset and limit."""
    typed = any(one.field == "type" for criterion in query.criteria for one in leaves(criterion))
    return [
        thing
        for thing in things
        if every(query.criteria, thing, now) and (typed or thing.sha1 is not None)
    ]  # fmt: skip


def leaves(criterion: Criterion) -> list[Comparison]:
    if isinstance(criterion, Comparison):
        return [criterion]
    return [leaf for part in criterion.parts for leaf in leaves(part)]


def every(criteria: Sequence[Criterion], thing: Thing, now: datetime) -> bool:
    flat = list(flattened(criteria))
    plain = [one for one in flat if isinstance(one, Comparison) and one.field in ("property.key", "property.value")]
    if len({one.field for one in plain}) == 2:
        rest = [one for one in flat if one not in plain]
        return one_property(plain, thing) and all(holds(one, thing, now) for one in rest)
    return all(holds(one, thing, now) for one in flat)


def flattened(criteria: Sequence[Criterion]) -> list[Criterion]:
    flat: list[Criterion] = []
    for one in criteria:
        flat += flattened(one.parts) if isinstance(one, Group) and one.join is Join.AND else [one]
    return flat


def holds(criterion: Criterion, thing: Thing, now: datetime) -> bool:
    if isinstance(criterion, Group):
        if criterion.join is Join.MSP:
            return one_property([part for part in criterion.parts if isinstance(part, Comparison)], thing)
        if criterion.join is Join.OR:
            return any(holds(part, thing, now) for part in criterion.parts)
        return every(criterion.parts, thing, now)
    if criterion.field.startswith("@") or criterion.field.startswith("property."):
        return property_holds(criterion, thing)
    return field_holds(criterion, thing, now)


def property_holds(asked: Comparison, thing: Thing) -> bool:
    if asked.operator in NEGATIVE:
        opposite = Comparison(asked.field, NEGATIVE[asked.operator], asked.value)
        return not property_holds(opposite, thing)
    if asked.value is None:
        return not any(fits(asked.field, None, pair) for pair in thing.pairs)
    return any(fits(asked.field, asked, pair) for pair in thing.pairs)


def one_property(asked: Sequence[Comparison], thing: Thing) -> bool:
    return any(all(fits(one.field, one, pair) for one in asked) for pair in thing.pairs)


def fits(name: str, asked: Comparison | None, pair: tuple[str, str]) -> bool:
    """Say whether a property is of the name meant, and compares as it should where it is compared at all."""
    key, value = pair
    if name == "property.key":
        return asked is None or compare(asked.operator, key, asked.value)
    if name not in ("property.value", "@*") and name != f"@{key}":
        return False
    if asked is None:
        return True
    if asked.value == "*" and asked.operator in (Operator.EQ, Operator.NE):
        return asked.operator is Operator.EQ
    return compare(asked.operator, value, None if asked.value is None else str(asked.value))


def field_holds(asked: Comparison, thing: Thing, now: datetime) -> bool:
    value, wanted = thing.value(asked.field), asked.value
    if asked.field == "repo" and thing.seen_in is not None:
        names = [replace(thing, repo=name, seen_in=None) for name in (thing.repo, thing.seen_in)]
        join = all if asked.operator in NEGATIVE and wanted is not None else any
        return join(field_holds(asked, name, now) for name in names)
    if isinstance(value, datetime):
        value = value.replace(microsecond=value.microsecond // 1000 * 1000)
    if asked.operator in (Operator.BEFORE, Operator.LAST):
        number, unit = re.fullmatch(r"(\d+)(\w+)", str(wanted)).groups()  # type: ignore[union-attr]
        moment = now - int(number) * PERIODS[unit]
        return value is not None and ((value < moment) is (asked.operator is Operator.BEFORE))
    if asked.field == "type" and wanted == "any":
        return asked.operator is Operator.EQ
    if asked.field in ("created", "stat.downloaded") and wanted is not None:
        wanted_at = datetime.fromisoformat(str(wanted))
        return compare(asked.operator, value, wanted_at if wanted_at.tzinfo else wanted_at.replace(tzinfo=UTC))
    if asked.field in ("size", "depth", "stat.downloads", "stat.remote_downloads") and wanted is not None:
        return compare(asked.operator, value, int(wanted))
    if asked.field.endswith("downloads") and wanted is None:
        return compare(asked.operator, value or None, None)
    return compare(asked.operator, value, wanted if wanted is None else str(wanted))


def compare(operator: Operator, left: Any, right: Any) -> bool:
    if operator in NEGATIVE:
        return not compare(NEGATIVE[operator], left, right)
    if right is None:
        return left is None
    if left is None:
        return False
    match operator:
        case Operator.EQ:
            return bool(left == right)
        case Operator.GT:
            return bool(left > right)
        case Operator.GTE:
            return bool(left >= right)
        case Operator.LT:
            return bool(left < right)
        case Operator.LTE:
            return bool(left <= right)
        case _:
            return re.fullmatch(expression(right), left) is not None


def expression(pattern: str) -> str:
    """Return a pattern as a regular expression, by way of the standard library's own patterns."""
    text = re.sub(r"\\([*?\\])", lambda found: LITERAL[found[1]], pattern)
    translated = fnmatch.translate(text.replace("[", "[[]"))
    for character, stand_in in LITERAL.items():
        translated = translated.replace(stand_in, f"\\{character}")
    return translated
