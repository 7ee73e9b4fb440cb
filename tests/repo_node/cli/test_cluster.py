"""``holdfast cluster read-only``."""

from __future__ import annotations

from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode

PATH = "/api/holdfast/settings/read_only_reason"


def test_switch_is_turned_on_with_its_reason_shown_and_turned_off(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["PUT", PATH] = (200, {"value": "moving"})
    result = holdfast("cluster", "read-only", "on", "--reason", " moving ")
    assert result.exit_code == 0 and "read-only now" in result.stdout
    node.json_answers["GET", PATH] = (200, {"value": "moving"})
    assert holdfast("cluster", "read-only").stdout == "Read-only: moving\n"
    assert holdfast("cluster", "read-only", "off").exit_code == 0
    assert node.bodies == [{"value": "moving"}, {"value": ""}]
    node.json_answers["GET", PATH] = (200, {"value": ""})
    assert holdfast("cluster", "read-only").stdout == "The cluster takes changes.\n"


def test_switch_is_not_turned_on_without_a_reason(holdfast: Holdfast, node: FakeNode) -> None:
    assert holdfast("cluster", "read-only", "on").exit_code == 2
    assert holdfast("cluster", "read-only", "on", "--reason", " ").exit_code == 2
    assert node.bodies == []
