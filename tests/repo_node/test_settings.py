"""The cluster settings: typed, bounded, checked together, and readable from a newer release's rows."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.settings import RISKS, LiveSettings, SettingError, Settings, combine, lenient, parse, risk_of
from sharding.tally import WritePolicy

ALL = Settings.model_fields
TEXTS = {name: field for name, field in ALL.items() if field.annotation is str}
SWITCHES = [name for name, field in ALL.items() if field.annotation is bool]
FIELDS = {name: field for name, field in ALL.items() if name not in TEXTS and name not in SWITCHES}
"""Those that are numbers."""

DEFAULTS = Settings().model_dump()


def bounds(name: str) -> tuple[float, float]:
    """Return the smallest and largest value that the field alone allows."""
    low, high = -math.inf, math.inf
    for rule in FIELDS[name].metadata:
        low = getattr(rule, "ge", getattr(rule, "gt", low))
        high = getattr(rule, "le", getattr(rule, "lt", high))
    return low, high


# ---------------------------------------------------------------- one by one


def test_defaults_are_valid_and_described() -> None:
    assert combine({}) == Settings() == combine(DEFAULTS)
    for name, field in ALL.items():
        assert field.description, name
        assert parse(name, json.dumps(DEFAULTS[name])) == DEFAULTS[name]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [True, 5, None, ["a"], "x" * 501, "a\nb", "a\0", "a\x1b[31m"], ids=json.dumps)
def test_text_of_the_wrong_kind_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name}: "):
        combine({name: value})


@pytest.mark.parametrize(
    ("text", "value"), [("moving house", "moving house"), ("5", "5"), ("null", "null"), ("", ""), ('"a b"', "a b")]
)
def test_text_needs_no_quotes(text: str, value: str) -> None:
    assert parse("read_only_reason", text) == value


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_or_off(name: str) -> None:
    assert combine({name: parse(name, "true")}) == Settings(**{name: True})
    for value in (1, 0, "true", "on", None, [True]):
        with pytest.raises(SettingError, match=f"^{name}: "):
            combine({name: value})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().redundancy = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value",
    [True, False, "5", "", [5], {"a": 1}, math.nan, math.inf, -math.inf, -1, -0.5],
    ids=lambda value: json.dumps(value),
)
def test_value_of_the_wrong_kind_is_refused_by_name(name: str, value: Any) -> None:
    """A value is stored as it was given, and read by SQL too: what would have to be coerced is refused."""
    with pytest.raises(SettingError, match=f"^{name}: "):
        combine({name: value})


@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"write_quorum"}))
def test_null_is_refused_where_there_is_no_choice(name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}: "):
        combine({name: None})


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].annotation is not float])
def test_fraction_of_a_whole_thing_is_refused(name: str) -> None:
    for value in (2.5, 2.0):
        with pytest.raises(SettingError, match=f"^{name}: "):
            combine({name: value})


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].annotation is float])
def test_whole_number_of_seconds_is_welcome(name: str) -> None:
    value = int(DEFAULTS[name])
    assert value >= 1
    assert getattr(combine({name: value}), name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_value_beyond_a_bound_is_refused_by_name(name: str) -> None:
    low, high = bounds(name)
    assert low > -math.inf, "every setting has a lower bound"
    beyond = [low - 1] if high == math.inf else [low - 1, high + 1]
    for value in beyond:
        with pytest.raises(SettingError, match=f"^{name}: .*than"):
            combine({name: type(DEFAULTS[name] or 1)(value)})


def test_every_setting_but_the_size_of_a_body_has_an_upper_bound() -> None:
    assert [name for name in FIELDS if bounds(name)[1] == math.inf] == ["body_bytes_max"]


def test_unknown_name_is_refused_with_where_to_look() -> None:
    for call in (lambda: combine({"redundency": 2}), lambda: parse("redundency", "2")):
        with pytest.raises(SettingError, match="no setting redundency; holdfast settings list"):
            call()


# ---------------------------------------------------------------- together


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"write_quorum": 3}, "write_quorum cannot be above redundancy"),
        ({"redundancy": 1, "write_quorum": 2}, "write_quorum cannot be above redundancy"),
        ({"write_zones_min": 3}, "write_zones_min cannot be above redundancy"),
        ({"node_down_seconds": 3.9}, "node_down_seconds must be at least twice heartbeat_seconds"),
        ({"heartbeat_seconds": 5.1}, "node_down_seconds must be at least twice heartbeat_seconds"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        combine(values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"redundancy": 3, "write_quorum": 3, "write_zones_min": 3},
        {"redundancy": 1, "write_quorum": None},
        {"heartbeat_seconds": 5, "node_down_seconds": 10},
    ],
)
def test_settings_at_the_edge_of_a_contradiction_are_welcome(values: dict[str, Any]) -> None:
    assert combine(values).model_dump() == DEFAULTS | values


# ---------------------------------------------------------------- what people write, what others wrote


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("null", None), (" 7\n", 7), ("1e3", 1000.0), ("true", True)]
)
def test_parse_reads_json(text: str, value: Any) -> None:
    assert parse("redundancy", text) == value


@pytest.mark.parametrize(
    "text", ["", "three", "0x10", "1_000", "None", "5s", "1,5", "[1", "010", "9" * 5000, "[" * 10**5], ids=range(11)
)
def test_parse_says_what_is_no_number(text: str) -> None:
    with pytest.raises(SettingError, match=r"^redundancy: .* is not a number or null"):
        parse("redundancy", text)


@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=12))
def test_no_text_gets_past_parse_and_combine_but_a_valid_value(name: str, text: str) -> None:
    try:
        value = parse(name, text)
        settings = combine({name: value})
    except SettingError as error:
        assert str(error)
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == getattr(settings, name) == value


@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), st.none() | st.integers(-5, 10**6) | st.floats() | st.booleans())
)
def test_any_combination_is_taken_as_it_is_or_refused(values: dict[str, Any]) -> None:
    try:
        settings = combine(values)
    except SettingError:
        return
    assert settings.model_dump() == DEFAULTS | values
    for redundancy in (None, 1, settings.redundancy, 16):
        policy = settings.write_policy(redundancy)
        assert 1 <= policy.quorum <= policy.redundancy
        assert 1 <= policy.zones_min <= policy.redundancy


def test_lenient_leaves_out_what_a_newer_release_wrote() -> None:
    values = {"redundancy": 3, "colour_of_the_front_page": "blue"}
    assert lenient(values) == combine({"redundancy": 3})
    with pytest.raises(SettingError, match="no setting colour_of_the_front_page"):
        combine(values)
    assert values == {"redundancy": 3, "colour_of_the_front_page": "blue"}


def test_lenient_refuses_a_known_setting_that_is_wrong() -> None:
    with pytest.raises(SettingError, match=r"^redundancy: "):
        lenient({"redundancy": 99, "unknown": 1})


# ---------------------------------------------------------------- what follows from them


@pytest.mark.parametrize(
    ("values", "repository", "policy"),
    [
        ({}, None, WritePolicy(2, None, 1)),
        ({}, 1, WritePolicy(2, None, 1)),
        ({}, 3, WritePolicy(3, None, 1)),
        ({"redundancy": 3, "write_quorum": 3, "write_zones_min": 2}, None, WritePolicy(3, 3, 2)),
        ({"redundancy": 3, "write_quorum": 1}, 5, WritePolicy(5, 1, 1)),
        ({"redundancy": 1}, None, WritePolicy(1, None, 1)),
    ],
)
def test_write_policy_takes_the_larger_redundancy(
    values: dict[str, Any], repository: int | None, policy: WritePolicy
) -> None:
    assert combine(values).write_policy(repository) == policy


def test_live_settings_begin_with_the_defaults_and_are_replaced_whole() -> None:
    live = LiveSettings()
    before = live.now
    assert before == Settings()
    live.now = combine({"redundancy": 3})
    assert (live.now.redundancy, before.redundancy) == (3, 2)
    assert LiveSettings(live.now).now.redundancy == 3


def test_gc_without_grace_is_refused_outside_of_tests() -> None:
    for seconds in (0, 59):
        with pytest.raises(SettingError, match="gc_grace_seconds"):
            combine({"gc_grace_seconds": seconds})


def test_every_risk_is_of_a_setting_whose_default_is_prudent_and_that_may_be_lower() -> None:
    for name, (prudent, _) in RISKS.items():
        assert bounds(name)[0] < prudent
        assert risk_of(name, DEFAULTS[name]) is None
        assert name in str(risk_of(name, prudent / 2))
        assert risk_of(name, prudent) is None
    assert risk_of("trash_days", 0) is None


@pytest.mark.parametrize("seconds", [1.0, 3599.0])
def test_quarantine_is_kept_for_ever_or_for_an_hour_at_least(seconds: float) -> None:
    with pytest.raises(SettingError, match="quarantine_seconds must be 0"):
        combine({"quarantine_seconds": seconds})
    assert combine({"quarantine_seconds": 0}).quarantine_seconds == 0


def test_lease_outlives_two_renewals_that_failed() -> None:
    with pytest.raises(SettingError, match="lease_seconds must be at least three times"):
        combine({"lease_seconds": 5, "lease_renew_seconds": 2})


def test_processes_share_what_their_node_may_do_at_most() -> None:
    live = LiveSettings(processes=3)
    live.take(Settings(uploads_in_flight_max=5, requests_per_user_max=10, stale_entries_max=0, redundancy=3))
    assert (live.now.uploads_in_flight_max, live.now.requests_per_user_max) == (2, 4)
    assert (live.now.stale_entries_max, live.now.redundancy) == (0, 3)
    alone = LiveSettings()
    alone.take(Settings(requests_per_user_max=10))
    assert alone.now == Settings(requests_per_user_max=10)
