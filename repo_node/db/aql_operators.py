"""AQL's operators in Postgres, and the same in Python for what needs no row. Every value is a bind parameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from repo_node.aql.tree import Operator
from repo_node.aql.wildcards import like, matches

SIGNS = {
    Operator.EQ: "=",
    Operator.GT: ">",
    Operator.GTE: ">=",
    Operator.LT: "<",
    Operator.LTE: "<=",
    Operator.MATCH: "LIKE",
}
NEGATIVE = {Operator.NE: Operator.EQ, Operator.NMATCH: Operator.MATCH}
"""What each of these operators denies. What is null is not equal, and not alike."""


@dataclass(slots=True)
class Arguments:
    """The bind parameters of a statement, in their order."""

    values: list[Any] = field(default_factory=list)

    def add(self, value: Any, type_name: str) -> str:
        """Return what stands for ``value`` in the statement."""
        self.values.append(value)
        return f"${len(self.values)}::{type_name}"


def compare(expression: str, operator: Operator, value: str | int | None, arguments: Arguments) -> str:
    """Write a comparison; it may be null only where it would be false."""
    if value is None:
        return f"({expression} IS {'' if operator is Operator.EQ else 'NOT '}NULL)"
    if operator in NEGATIVE:
        return deny(compare(expression, NEGATIVE[operator], value, arguments))
    wanted = like(value) if operator is Operator.MATCH and isinstance(value, str) else value
    stands = arguments.add(wanted, "bigint" if isinstance(value, int) else "text")
    return f"({expression} {SIGNS[operator]} {stands})"


def deny(condition: str) -> str:
    return f"({condition} IS NOT TRUE)"


def holds(operator: Operator, left: Any, right: Any) -> bool:
    """Compare two values of one kind, each of which may be None, as ``compare`` does in Postgres."""
    if right is None:
        return (left is None) is (operator is Operator.EQ)
    if operator in NEGATIVE:
        return not holds(NEGATIVE[operator], left, right)
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
            return matches(right, left)
