"""What is asked, checked: fields that exist, each compared with a value of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from repo_node.aql.fields import Kind
from repo_node.aql.tree import Operator

FieldValue = str | int | bytes | datetime | None


@dataclass(frozen=True, slots=True)
class FieldTest:
    """A field compared. ``$before`` and ``$last`` have become ``$lt`` and ``$gte``; only ``$eq`` and ``$ne`` know None.

    A digest compared by ``$eq`` or ``$ne`` is bytes; by the others, text in hex digits.
    """

    field: str
    kind: Kind
    operator: Operator
    value: FieldValue


@dataclass(frozen=True, slots=True)
class PropertyTest:
    """A property compared: the value of that called ``key``, of any where it is None, or, ``of_key``, its name.

    Of an item it holds when some value of some property fulfils it; for ``$ne`` and ``$nmatch``, when none
    fulfils the opposite. ``$ne`` with None asks for the property, ``$eq`` with None for its absence.
    """

    key: str | None
    of_key: bool
    operator: Operator
    value: str | None


@dataclass(frozen=True, slots=True)
class SameProperty:
    """One value of one property fulfils all of ``tests``."""

    tests: tuple[PropertyTest, ...]


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Condition, ...]


Condition = FieldTest | PropertyTest | SameProperty | All | Either


@dataclass(frozen=True, slots=True)
class Shown:
    """What of each item is answered. ``properties`` names those shown, None for all; ``parts`` says what of them."""

    fields: tuple[str, ...]
    property_parts: frozenset[str] = frozenset()
    properties: frozenset[str] | None = None
    stats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sort:
    field: str
    descending: bool


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """A query that can be answered."""

    condition: Condition
    shown: Shown
    sort: tuple[Sort, ...] = ()
    offset: int = 0
    limit: int | None = None


def comparisons_in(condition: Condition) -> Iterator[FieldTest | PropertyTest]:
    """Yield every comparison in a condition."""
    match condition:
        case All(parts) | Either(parts):
            for part in parts:
                yield from comparisons_in(part)
        case SameProperty(tests):
            yield from tests
        case _:
            yield condition
