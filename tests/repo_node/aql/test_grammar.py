"""Queries as text: what is read is what was written, and whatever cannot be read is our own error, whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo_node.aql.grammar import parse
from repo_node.aql.printing import print_query
from repo_node.aql.tree import AqlError, Comparison, Group, Join, Operator, Order, Query
from tests.repo_node.aql.strategies import ANY_QUERY

DEPTH = 40
PIECES = (
    "items", ".find", "(", ")", "{", "}", "[", "]", ":", ",", '"', '"$and"', '"$or"', '"$msp"', '"$eq"', '"name"', '"a"',
    "null", "true", "1", "-1", "1.5", ".include", ".sort", ".limit", ".offset", ".transitive", " ", "\n", "\\", "\0", "ü",
    "builds", "items.find(", "items.find({", '"@k"', '{"$gt":', "})", '"$asc"', ".distinct", "\ud800", "\\ud800",
)  # fmt: skip


def read(text: str) -> Query:
    return parse(text, nesting_max=DEPTH)


def compare(field: str, value: str | int | None, operator: Operator = Operator.EQ) -> Comparison:
    return Comparison(field, operator, value)


@settings(max_examples=60)
@given(ANY_QUERY)
def test_what_is_printed_reads_as_the_same_query(query: Query) -> None:
    assert parse(print_query(query), nesting_max=100) == query


@given(st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_text_raises_anything_but_our_own_error(text: str) -> None:
    try:
        query = read(text)
    except AqlError as error:
        assert str(error).endswith(".")
    else:
        assert read(print_query(query)) == query


@pytest.mark.parametrize(
    ("text", "criteria"),
    [
        ("items.find()", ()),
        ("items.find({})", ()),
        (' items . find ( { "name" : "a" } ) ', (compare("name", "a"),)),
        ('items.find({"name":"a"},{"repo":"b"})', (compare("name", "a"), compare("repo", "b"))),
        ('items.find({"a":1,"a":2})', (compare("a", 1), compare("a", 2))),
        ('items.find({"a":null,"b":true})', (compare("a", None), compare("b", "true"))),
        ('items.find({"a":{"$gt":1,"$lt":5}})',
         (Group(Join.AND, (compare("a", 1, Operator.GT), compare("a", 5, Operator.LT))),)),
        ('items.find({"$or":[{"a":1,"b":2}]})', (Group(Join.OR, (compare("a", 1), compare("b", 2))),)),
        ('items.find({"$or":[{"a":1},{"$and":[{"b":2,"c":3}]}]})',
         (Group(Join.OR, (compare("a", 1), Group(Join.AND, (compare("b", 2), compare("c", 3))))),)),
        ('items.find({"$msp":["@l":{"$match":"*G*"},"@l":{"$nmatch":"L*"}]})',
         (Group(Join.MSP, (compare("@l", "*G*", Operator.MATCH), compare("@l", "L*", Operator.NMATCH))),)),
        ('items.find({"@a":{"$ne":{"$match":"v*"}}})', (compare("@a", "v*", Operator.NMATCH),)),
        (r'items.find({"a":"\"\\\/\u00e4\ud83d\ude00\*"})', (compare("a", '"\\/ä😀\\*'),)),
    ],
)  # fmt: skip
def test_criteria_are_read(text: str, criteria: tuple[Comparison | Group, ...]) -> None:
    assert read(text).criteria == criteria


def test_clauses_are_read_in_any_order() -> None:
    text = 'items.find().limit(5).sort({"$desc" : ["size","name"]}).transitive().offset(2).include("name", "@a").distinct(false)'
    assert read(text) == Query((), ("name", "@a"), Order(("size", "name"), descending=True), 2, 5, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends too early"),
        ("items.find(", "ends too early"),
        ("items", "ends too early"),
        ("builds.find()", "Only items"),
        ("archive.entries.find({})", "Only items"),
        ('items.find({"a" 1})', "line 1, column 17"),
        ('items.find({"a":{"$like":1}})', "no operator '$like'"),
        ('items.find({"a":{"$gt":{"$match":"x"}}})', "$gt compares with a value"),
        ('items.find({"$nor":[{"a":1}]})', "Only $and, $or and $msp"),
        ('items.find({"$or":[]})', "$or has no criteria"),
        ('items.find({"$or":[{}]})', "$or has no criteria"),
        ('items.find({"a":1e9})', "column 17"),
        ('items.find({"a":12345678901234567890})', "column 17"),
        ("items.find().limit(-1)", "limit must be a whole number"),
        ("items.find().offset(1.5)", "offset must be a whole number"),
        ("items.find().limit(1).limit(2)", "limit is said twice"),
        ('items.find().sort({"$up":["name"]})', "$asc or $desc"),
        ("items.find(); DROP TABLE artifacts", "column 13"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(AqlError) as told:
        read(text)
    assert says in str(told.value)


def test_s39_nesting_is_bounded_before_anything_is_built() -> None:
    deep = "items.find(" + '{"$and":[' * 10_000
    with pytest.raises(AqlError, match="nested deeper than 40"):
        read(deep)
    assert read('items.find({"name":"' + "[{(" * 100 + '"})').criteria == (compare("name", "[{(" * 100),)
