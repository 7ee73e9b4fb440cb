"""AQL as SQL: made of constants, whatever the query says; what it says is bound."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given

from repo_node.aql.checking import QueryLimits, check
from repo_node.aql.grammar import parse
from repo_node.aql.tree import AqlError, Comparison, Criterion, Group, Query
from repo_node.db.aql_conditions import Compiler
from repo_node.db.aql_operators import Arguments
from repo_node.db.scopes import RowScope
from tests.repo_node.aql.strategies import QUERY

NOW = datetime(2026, 1, 10, tzinfo=UTC)
LIMITS = QueryLimits(1_000, 1_000)
NAMES = {
    "libs": RowScope((1,)),
    "both": RowScope((1, 2)),
    "docs": RowScope((3,)),
    "part": RowScope((1,), (2,), ("^a/.*$",)),
}
EVIL = "x'\"; DROP$1--"


def written(query: Query) -> tuple[str, Arguments]:
    arguments = Arguments()
    return Compiler(NAMES, arguments).write(check(query, NOW, LIMITS).condition), arguments


def poisoned(criterion: Criterion) -> Criterion:
    """Return a criterion whose texts, and names of properties, have something in them that must not be in SQL."""
    if isinstance(criterion, Group):
        return replace(criterion, parts=tuple(map(poisoned, criterion.parts)))
    name = f"{criterion.field}{EVIL}" if criterion.field.startswith("@") else criterion.field
    is_text = name.startswith(("@", "prop")) or name in ("repo", "path", "name", "created_by", "actual_sha1", "type")
    value = f"{criterion.value}{EVIL}" if is_text and isinstance(criterion.value, str) else criterion.value
    return Comparison(name, criterion.operator, value)


@given(QUERY)
def test_s36_nothing_that_a_query_says_gets_into_sql(query: Query) -> None:
    try:
        sql, arguments = written(replace(query, criteria=tuple(map(poisoned, query.criteria))))
    except AqlError:
        assume(False)
    assert "DROP" not in sql and '"' not in sql.replace('COLLATE "C"', "")
    numbers = {int(number) for number in re.findall(r"\$(\d+)", sql)}
    assert numbers == set(range(1, len(arguments.values) + 1))
    assert re.sub(r"'[^']*'", "", sql).count("'") == 0


@pytest.mark.parametrize(
    ("criteria", "ids"),
    [
        ("{}", {1, 2, 3}),
        ('{"repo":"libs"}', {1}),
        ('{"repo":"both"}', {1, 2}),
        ('{"repo":"part"}', {1, 2}),
        ('{"repo":{"$ne":"part"}}', {2, 3}),
        ('{"repo":"none"}', set()),
        ('{"repo":{"$ne":"both"}}', {3}),
        ('{"repo":{"$match":"*o*"}}', {1, 2, 3}),
        ('{"repo":{"$nmatch":"d*"}}', {1, 2}),
        ('{"repo":{"$ne":null}}', {1, 2, 3}),
        ('{"repo":null}', set()),
        ('{"$or":[{"repo":"libs"},{"repo":"docs","name":"x"}]}', {1, 2, 3}),
        ('{"$or":[{"repo":"libs"},{"$and":[{"repo":"docs","name":"x"}]}]}', {1, 3}),
        ('{"repo":"both","$or":[{"repo":"libs"},{"repo":"docs"}]}', {1}),
    ],
)
def test_a_query_looks_only_where_it_can_find_something(criteria: str, ids: set[int]) -> None:
    condition = check(parse(f"items.find({criteria})", nesting_max=40), NOW, LIMITS).condition
    assert Compiler(NAMES, Arguments()).within(condition) == ids


def test_what_holds_of_all_or_of_none_is_not_asked_of_postgres() -> None:
    for criteria, sql in (
        ('{"type":"any"}', "true"),
        ('{"type":"any","repo":{"$match":"*"}}', "true"),
        ('{"type":"none"}', "false"),
        ('{"name":"x","stat.remote_path":"y"}', "false"),
        ('{"type":"any","$or":[{"name":"x"},{"stat.remote_path":null}]}', "true"),
        ('{"stat.remote_downloads":{"$eq":null},"name":"x"}', "((a.name = $1::text) AND (a.blob_id IS NOT NULL))"),
    ):
        assert written(parse(f"items.find({criteria})", nesting_max=40))[0] == sql
