"""What may be asked: fields from one list, values of their kind, and no more than the limits allow."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from repo_node.aql.checking import QueryLimits, check
from repo_node.aql.conditions import FieldTest, ItemQuery, comparisons_in
from repo_node.aql.fields import DEFAULT_FIELDS, ELSEWHERE, FIELDS, ITEM_FIELDS, STAT_FIELDS
from repo_node.aql.grammar import parse
from repo_node.aql.tree import AqlError, Operator
from repo_node.aql.values import moment_before

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
LIMITS = QueryLimits(criteria_max=50, offset_max=1_000)


def asked(text: str) -> ItemQuery:
    return check(parse(text, nesting_max=40), NOW, LIMITS)


def refusal(text: str) -> str:
    with pytest.raises(AqlError) as told:
        asked(text)
    return str(told.value)


@pytest.mark.parametrize(
    "field", ["properties", "repo_id", "a.name", "name; --", "blob_id", "", "item.name", "stat", "stat.id", "NAME"]
)
def test_s36_a_field_that_is_not_listed_is_refused_wherever_it_stands(field: str) -> None:
    for text in (f'items.find({{"{field}":"x"}})', f'items.find().sort({{"$asc":["{field}"]}})'):
        assert "Items have no field" in refusal(text)
    if field != "stat":
        assert "Items have no field" in refusal(f'items.find().include("{field}")')


@pytest.mark.parametrize("domain", ELSEWHERE)
def test_what_does_not_exist_here_is_refused_and_not_taken_as_empty(domain: str) -> None:
    for text in (f'items.find({{"{domain}.x.name":"y"}})', f'items.find().include("{domain}.name")'):
        assert "kept here" in refusal(text) or "listed here" in refusal(text)


@pytest.mark.parametrize(
    "criterion",
    [
        '"size":"large"', '"size":1.5', '"size":{"$match":"1*"}', '"size":99999999999999999999', '"size":"99999999999999999999"',
        '"created":"yesterday"', '"created":{"$gt":"2026-13-01"}', '"created":{"$match":"2026*"}', '"created":true',
        '"created":{"$last":"3"}', '"created":{"$last":"d"}', '"created":{"$last":3}', '"created":{"$before":"999999999999y"}',
        '"created":"0001-01-01T00:00:00Z"', '"created":"9999-12-31T23:59:59Z"', '"created":999999999999999999',
        '"size":{"$last":"3d"}', '"name":{"$gt":null}', '"name":{"$before":"1d"}', '"@a":{"$match":null}', '"@a":{"$last":"1d"}',
        '"@":"x"', r'"name":"\u0000"', r'"name":"\ud800"', r'"@\u0000":"x"', '"$msp":[{"name":"x"}]',
        '"$msp":[{"$or":[{"@a":"x"}]}]', '"$msp":[{"@a":null}]', '"depth":{"$nmatch":"*"}',
    ],
)  # fmt: skip
def test_a_value_that_its_field_cannot_have_is_refused(criterion: str) -> None:
    assert refusal(f"items.find({{{criterion}}})").endswith(".")


@pytest.mark.parametrize(
    ("period", "moment"),
    [
        ("500ms", datetime(2026, 3, 31, 11, 59, 59, 500_000, UTC)),
        ("30s", datetime(2026, 3, 31, 11, 59, 30, tzinfo=UTC)),
        ("90 minutes", datetime(2026, 3, 31, 10, 30, tzinfo=UTC)),
        ("3d", datetime(2026, 3, 28, 12, tzinfo=UTC)),
        ("2w", datetime(2026, 3, 17, 12, tzinfo=UTC)),
        ("1mo", datetime(2026, 2, 28, 12, tzinfo=UTC)),
        ("3months", datetime(2025, 12, 31, 12, tzinfo=UTC)),
        ("2Y", datetime(2024, 3, 31, 12, tzinfo=UTC)),
    ],
)
def test_periods_reach_back_from_now(period: str, moment: datetime) -> None:
    assert moment_before(NOW, period) == moment


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ('"2026-01-31"', datetime(2026, 1, 31, tzinfo=UTC)),
        ('"2026-01-31T10:00:00.123456+02:00"', datetime(2026, 1, 31, 8, 0, 0, 123_000, UTC)),
        ('"2026-01-31T10:00:00.001Z"', datetime(2026, 1, 31, 10, 0, 0, 1_000, UTC)),
        ('"2026-01-31 10:00:00"', datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("1769853600001", datetime(2026, 1, 31, 10, 0, 0, 1_000, UTC)),
    ],
)
def test_times_are_read_to_the_millisecond(text: str, at: datetime) -> None:
    [test, _] = comparisons_in(asked(f'items.find({{"created":{{"$gt":{text}}}}})').condition)
    assert test == FieldTest("created", FIELDS["created"], Operator.GT, at)


def test_files_are_meant_where_no_type_is_named() -> None:
    types = [
        test.value
        for test in comparisons_in(asked('items.find({"name":"a"})').condition)
        if isinstance(test, FieldTest)
    ]
    assert types == ["a", "file"]
    [test] = comparisons_in(asked('items.find({"$or":[{"type":"any"}]})').condition)
    assert test.value == "any"


def test_what_is_shown_follows_include() -> None:
    assert asked("items.find()").shown.fields == DEFAULT_FIELDS
    whole = asked('items.find().include("*","property","stat")').shown
    assert (whole.fields, whole.stats, whole.properties) == (tuple(ITEM_FIELDS), tuple(STAT_FIELDS), None)
    assert whole.property_parts == {"key", "value"}
    assert asked('items.find().include("property.*")').shown.fields == DEFAULT_FIELDS
    some = asked('items.find().include("name","@b","@a","stat.downloads")')
    assert (some.shown.fields, some.shown.properties, some.shown.stats) == (("name",), {"a", "b"}, ("stat.downloads",))
    assert [test.key for test in comparisons_in(some.condition) if not isinstance(test, FieldTest)] == ["a", "b"]
    assert asked('items.find().include("property.key")').shown.property_parts == {"key"}


def test_s39_criteria_and_offset_are_bounded() -> None:
    many = ",".join(['{"name":"a"}'] * 51)
    assert "more than 50 criteria" in refusal(f'items.find({{"$or":[{many}]}})')
    assert asked(f'items.find({{"$or":[{many[13:]}]}})').offset == 0
    assert "aql_offset_max" in refusal("items.find().offset(1001)")
    assert asked("items.find().offset(1000)").offset == 1000


def test_items_are_not_sorted_by_properties() -> None:
    assert "not sorted" in refusal('items.find().sort({"$asc":["@a"]})')
