"""Checks a query against the fields there are, and says what is left to be found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from repo_node.aql.conditions import (
    All,
    Condition,
    Either,
    FieldTest,
    ItemQuery,
    PropertyTest,
    SameProperty,
    Shown,
    Sort,
    comparisons_in,
)
from repo_node.aql.fields import DEFAULT_FIELDS, FIELDS, ITEM_FIELDS, STAT_FIELDS, Kind, kind_of, unknown
from repo_node.aql.tree import AqlError, Comparison, Criterion, Group, Join, Operator, Order, Query
from repo_node.aql.values import EQUALITY, RELATIVE, test_of, text_of

PROPERTY_PARTS = {"property.key": frozenset({"key"}), "property.value": frozenset({"value"})}
WHOLE_PROPERTY = frozenset({"key", "value"})
FILES = FieldTest("type", Kind.TYPE, Operator.EQ, "file")


@dataclass(frozen=True, slots=True)
class QueryLimits:
    criteria_max: int
    offset_max: int


def check(query: Query, now: datetime, limits: QueryLimits) -> ItemQuery:
    """Return what a query asks for at a time. Raises ``AqlError``."""
    if sum(1 for criterion in query.criteria for _ in comparisons(criterion)) > limits.criteria_max:
        raise AqlError(f"The query has more than {limits.criteria_max} criteria (setting aql_criteria_max).")
    if query.offset > limits.offset_max:
        raise AqlError(f"An offset may be {limits.offset_max} at most (setting aql_offset_max).")
    condition = joined(query.criteria, now)
    if not any(isinstance(test, FieldTest) and test.field == "type" for test in comparisons_in(condition)):
        condition = All((condition, FILES))
    shown = shown_by(query.include)
    if shown.properties:
        # Who asks to see a property asks for items that have it.
        condition = All((condition, Either(tuple(has_property(key) for key in sorted(shown.properties)))))
    return ItemQuery(condition, shown, sorts(query.sort), query.offset, query.limit)


def comparisons(criterion: Criterion) -> Iterator[Comparison]:
    if isinstance(criterion, Comparison):
        yield criterion
    else:
        for part in criterion.parts:
            yield from comparisons(part)


# ------------------------------------------------------------------ criteria


def joined(criteria: Sequence[Criterion], now: datetime) -> Condition:
    """Return the condition that all criteria hold. The plain name and value of a property mean one and the same."""
    flat = tuple(flattened(criteria))
    same = [one for one in flat if isinstance(one, Comparison) and one.field in PROPERTY_PARTS]
    if {one.field for one in same} != set(PROPERTY_PARTS):
        return All(tuple(condition_of(one, now) for one in flat))
    rest = [one for one in flat if one not in same]
    return All((same_property(same), *(condition_of(one, now) for one in rest)))


def flattened(criteria: Sequence[Criterion]) -> Iterator[Criterion]:
    for one in criteria:
        if isinstance(one, Group) and one.join is Join.AND:
            yield from flattened(one.parts)
        else:
            yield one


def condition_of(criterion: Criterion, now: datetime) -> Condition:
    match criterion:
        case Group(Join.AND, parts):
            return joined(parts, now)
        case Group(Join.OR, parts):
            return Either(tuple(condition_of(part, now) for part in parts))
        case Group(Join.MSP, parts):
            return same_property(parts)
        case Comparison() as comparison if is_property(comparison.field):
            return property_test(comparison)
        case Comparison() as comparison:
            return test_of(comparison, now)
    raise AssertionError("unreachable")


def same_property(parts: Sequence[Criterion]) -> SameProperty:
    """Return that one property fulfils all of ``parts``. Raises ``AqlError``."""
    tests = tuple(property_test(part) for part in parts if isinstance(part, Comparison))
    if len(tests) != len(parts):
        raise AqlError("$msp compares properties and joins nothing else.")
    if any(test.value is None and test.operator is Operator.EQ for test in tests):
        raise AqlError("What is said of one property cannot be that it is null, or not there.")
    return SameProperty(tests)


def is_property(field: str) -> bool:
    return field.startswith("@") or field in PROPERTY_PARTS


def property_test(asked: Comparison) -> PropertyTest:
    """Return a comparison of a property. Raises ``AqlError``."""
    if not is_property(asked.field):
        raise AqlError(f"$msp compares properties, not {asked.field[:60]!r}.")
    if asked.operator in RELATIVE or (asked.value is None and asked.operator not in EQUALITY):
        raise AqlError(f"{asked.field[:60]}: {asked.operator} does not compare a property with that.")
    value = None if asked.value is None else text_of(asked.value)
    if asked.field == "property.key":
        return PropertyTest(None, True, asked.operator, value)
    key = None if asked.field == "property.value" else key_in(asked.field)
    if value == "*" and asked.operator in EQUALITY:
        # Any value: that the property is there, or that it is not.
        return PropertyTest(key, False, Operator.NE if asked.operator is Operator.EQ else Operator.EQ, None)
    return PropertyTest(key, False, asked.operator, value)


def key_in(field: str) -> str | None:
    """Return the property that ``@name`` names, None for any. Raises ``AqlError``."""
    key = text_of(field.removeprefix("@"))
    if not key:
        raise AqlError("@ is followed by the name of a property.")
    return None if key == "*" else key


def has_property(key: str) -> PropertyTest:
    return PropertyTest(key, False, Operator.NE, None)


# ------------------------------------------------------------------ what is shown, and in which order


def shown_by(include: Sequence[str]) -> Shown:
    """Return what ``include`` asks to be shown; where it names no field of the item itself, the usual ones."""
    fields: dict[str, None] = {}
    stats: dict[str, None] = {}
    parts: frozenset[str] = frozenset()
    keys: set[str] = set()
    everything = False
    for name in include:
        if name == "*":
            fields |= dict.fromkeys(ITEM_FIELDS)
        elif name in ITEM_FIELDS:
            fields[name] = None
        elif name in ("property", "property.*") or name in PROPERTY_PARTS:
            parts |= PROPERTY_PARTS.get(name, WHOLE_PROPERTY)
            everything = True
        elif name in ("stat", "stat.*"):
            stats |= dict.fromkeys(STAT_FIELDS)
        elif name in STAT_FIELDS:
            stats[name] = None
        elif name.startswith("@"):
            parts |= WHOLE_PROPERTY
            if (key := key_in(name)) is None:
                everything = True
            else:
                keys.add(key)
        else:
            raise unknown(name)
    shown = None if everything or not keys else frozenset(keys)
    return Shown(tuple(fields or DEFAULT_FIELDS), parts, shown, tuple(stats))


def sorts(order: Order | None) -> tuple[Sort, ...]:
    if order is None:
        return ()
    for field in order.fields:
        if is_property(field):
            raise AqlError("Items are not sorted by their properties.")
        kind_of(field)
    assert set(order.fields) <= set(FIELDS)
    return tuple(Sort(field, order.descending) for field in order.fields)
