from __future__ import annotations

import json

import pytest

from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode, Fault

REDUNDANCY = {"key": "redundancy", "value": 3, "default": 2, "is_set": True, "description": "copies wanted"}
QUORUM = {"key": "write_quorum", "value": None, "default": None, "is_set": False, "description": "durable copies"}
PATH = "/api/holdfast/settings"


def test_settings_list_shows_values_and_meanings(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", PATH] = (200, {"settings": [REDUNDANCY, QUORUM]})
    result = holdfast("settings", "list")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "redundancy 3 * copies wanted (default 2)" in lines
    assert "write_quorum null durable copies" in lines
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_settings_list_prints_json(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", PATH] = (200, {"settings": [REDUNDANCY]})
    assert json.loads(holdfast("settings", "list", "--json").stdout) == {"settings": [REDUNDANCY]}


def test_settings_get_prints_the_value_alone(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", f"{PATH}/redundancy"] = (200, REDUNDANCY)
    assert holdfast("settings", "get", "redundancy").stdout == "3\n"
    assert json.loads(holdfast("settings", "get", "--json", "redundancy").stdout) == REDUNDANCY


def test_settings_get_of_an_unknown_name_ends_with_status_1(holdfast: Holdfast, node: FakeNode) -> None:
    result = holdfast("settings", "get", "odd/name ?")
    assert result.exit_code == 1
    assert "there is no /api/holdfast/settings/odd%2Fname%20%3F (status 404" in result.stderr


def test_settings_list_shows_only_what_was_changed(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", PATH] = (200, {"settings": [REDUNDANCY, QUORUM]})
    shown = holdfast("settings", "list", "--changed").stdout
    assert "redundancy" in shown and "write_quorum" not in shown
    node.json_answers["GET", PATH] = (200, {"settings": [QUORUM]})
    assert holdfast("settings", "list", "--changed").stdout == "Every setting has its default.\n"


def test_settings_reset_says_what_holds_now(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["DELETE", f"{PATH}/redundancy"] = (200, REDUNDANCY | {"value": 2, "is_set": False})
    result = holdfast("settings", "reset", "redundancy")
    assert result.stdout == "redundancy is 2 now, as by default, on every node within a second.\n"


def test_settings_set_warns_of_a_risk_on_standard_error(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["PUT", f"{PATH}/redundancy"] = (200, REDUNDANCY | {"value": 1, "warning": "that is one copy"})
    result = holdfast("settings", "set", "redundancy", "1")
    assert result.exit_code == 0
    assert result.stderr == "Warning: that is one copy.\n" and "Warning" not in result.stdout


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("null", None), ("1.5", 1.5), ("true", True)])
def test_settings_set_sends_a_json_scalar(holdfast: Holdfast, node: FakeNode, text: str, value: object) -> None:
    node.json_answers["PUT", f"{PATH}/redundancy"] = (200, REDUNDANCY | {"value": value})
    result = holdfast("settings", "set", "redundancy", text)
    assert result.exit_code == 0, result.output
    assert node.bodies == [{"value": value}]
    assert result.stdout == f"redundancy is {text} now, on every node within a second.\n"


def test_settings_set_takes_a_negative_value_for_a_value(holdfast: Holdfast, node: FakeNode) -> None:
    node.fail("PUT", Fault(status=400, message="redundancy: Input should be greater than or equal to 1"))
    result = holdfast("settings", "set", "redundancy", "-1")
    assert result.exit_code == 1
    assert "Input should be greater than or equal to 1 (status 400" in result.stderr


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("redundancy", "three", "redundancy"),
        ("redundancy", "default", "holdfast settings reset redundancy"),
        ("redundancy", "[3]", "not a single value"),
        ("redundancy", "{}", "not a single value"),
        ("read_hedge_seconds", "NaN", "not a single value"),
        ("read_hedge_seconds", "-Infinity", "not a single value"),
        ("redundancies", "3", "there is no setting redundancies"),
    ],
)
def test_settings_set_refuses_a_bad_value_before_it_is_sent(
    holdfast: Holdfast, node: FakeNode, key: str, value: str, words: str
) -> None:
    result = holdfast("settings", "set", key, value)
    assert result.exit_code == 2
    assert words in result.stderr
    assert node.seen == []
