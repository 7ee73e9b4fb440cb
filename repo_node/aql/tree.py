"""A query as it was written: what ``grammar`` reads and ``printing`` writes. Names in it are not looked at yet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AqlError(ValueError):
    """The query cannot be answered; the message, a sentence, says why and where."""


class Operator(StrEnum):
    """How a field is compared with a value."""

    EQ = "$eq"
    NE = "$ne"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    MATCH = "$match"
    NMATCH = "$nmatch"
    BEFORE = "$before"
    LAST = "$last"


class Join(StrEnum):
    """How criteria make one: every one, any one, or all of them by one and the same property."""

    AND = "$and"
    OR = "$or"
    MSP = "$msp"


Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    field: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class Group:
    """Criteria joined; there is at least one."""

    join: Join
    parts: tuple[Comparison | Group, ...]


Criterion = Comparison | Group


@dataclass(frozen=True, slots=True)
class Order:
    fields: tuple[str, ...]
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A query for items: all ``criteria`` hold. ``limit`` None stands for all there are.

    ``transitive`` asks for what other servers have too, of which there are none here: it changes nothing.
    """

    criteria: tuple[Criterion, ...] = ()
    include: tuple[str, ...] = ()
    sort: Order | None = None
    offset: int = 0
    limit: int | None = None
    transitive: bool = False
