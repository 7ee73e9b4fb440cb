"""AQL's comparisons of properties as SQL over ``artifacts a``. What the index of properties can tell is said to it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from repo_node.aql.conditions import PropertyTest
from repo_node.aql.tree import Operator
from repo_node.db.aql_operators import NEGATIVE, Arguments, compare, deny

ANY = "a.properties <> '{}'"
"""The index has no others, and is thought of only where this is said."""

VALUES_OF_ALL = "jsonb_each(a.properties) AS p (key, texts), jsonb_array_elements_text(p.texts) AS v (text)"
KEY, VALUE = 'p.key COLLATE "C"', 'v.text COLLATE "C"'


def property_of_item(test: PropertyTest, arguments: Arguments) -> str:
    """Write that some property of an item fulfils ``test``; for a negative one, that none fulfils the opposite."""
    if test.value is None:
        there = f"({ANY} AND {has_key(test.key, arguments)})" if test.key is not None else f"({ANY})"
        return there if test.operator is Operator.NE else deny(there)
    if test.operator in NEGATIVE:
        opposite = PropertyTest(test.key, test.of_key, NEGATIVE[test.operator], test.value)
        return deny(property_of_item(opposite, arguments))
    if test.operator is Operator.EQ and (test.of_key or test.key is not None):
        return f"({ANY} AND {' AND '.join(known_to_index(test, arguments))})"
    return same_property([test], arguments)


def same_property(tests: Sequence[PropertyTest], arguments: Arguments) -> str:
    """Write that one value of one property fulfils all of ``tests``."""
    known = [text for test in tests for text in known_to_index(test, arguments)]
    keys = {test.key for test in tests}
    source = VALUES_OF_ALL
    if len(keys) == 1 and (key := keys.pop()) is not None and not any(test.of_key for test in tests):
        source = f"jsonb_array_elements_text(a.properties -> {arguments.add(key, 'text')}) AS v (text)"
        rows = [text for test in tests if (text := of_value(test, arguments))]
    else:
        rows = [text for test in tests for text in of_row(test, arguments)]
    found = f"EXISTS (SELECT FROM {source} WHERE {' AND '.join(rows) or 'true'})"
    return "(" + " AND ".join([ANY, *known, found]) + ")"


def known_to_index(test: PropertyTest, arguments: Arguments) -> list[str]:
    """Return what of a positive test, or of one of a single property, the index of properties can answer."""
    if test.of_key:
        is_exact = test.operator is Operator.EQ and test.value is not None
        return [has_key(test.value, arguments)] if is_exact else []
    if test.key is None:
        return []
    if test.operator is Operator.EQ and test.value is not None:
        return [f"a.properties @> {arguments.add(json.dumps({test.key: [test.value]}), 'jsonb')}"]
    return [has_key(test.key, arguments)]


def has_key(key: str | None, arguments: Arguments) -> str:
    return f"a.properties ? {arguments.add(key, 'text')}"


def of_row(test: PropertyTest, arguments: Arguments) -> list[str]:
    """Return what a test says of a name ``p.key`` and its value ``v.text``."""
    if test.of_key:
        return [] if test.value is None else [compare(KEY, test.operator, test.value, arguments)]
    named = [] if test.key is None else [compare(KEY, Operator.EQ, test.key, arguments)]
    value = of_value(test, arguments)
    return [*named, value] if value else named


def of_value(test: PropertyTest, arguments: Arguments) -> str:
    """Return what a test says of a value; nothing where any will do."""
    return "" if test.value is None else compare(VALUE, test.operator, test.value, arguments)
