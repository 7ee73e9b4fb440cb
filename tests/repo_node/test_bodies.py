"""Bodies are read by the types that describe them: what these refuse is a 400 that names the fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import Field

from repo_node.api.bodies import ArtifactoryDocument, OwnDocument, PlainText, validated
from repo_node.errors import RequestError
from tests.repo_node.nodes import RunningCluster, errors_of

BASE = "/artifactory/api/holdfast"
CALLS = {
    "weight": ("PUT", f"{BASE}/shards/1/weight"),
    "copies": ("POST", f"{BASE}/shards/1/give-up"),
    "shard": ("POST", f"{BASE}/nodes/node-1/reload"),
    "node": ("POST", f"{BASE}/jobs/scrub/run"),
    "detail": ("POST", f"{BASE}/gc/hold"),
    "value": ("PUT", f"{BASE}/settings/redundancy"),
}
REFUSED: list[tuple[str, Any]] = [
    *[("weight", value) for value in (None, True, "1", 0, 1001, float("nan"), float("inf"))],
    *[("copies", value) for value in (None, True, "1", 0, 1.5, 2**63)],
    *[("shard", value) for value in (1, "", "disk-1", "/\0", "/\ud800", "/" + "\u00e4" * 2048, "/" + "x" * 4096)],
    *[("node", value) for value in (1, ["node-1"], "\0", "\ud800")],
    *[("detail", value) for value in (None, 1, "", "x" * 501, "\0")],
]


class Own(OwnDocument):
    name: PlainText = Field("", max_length=5)


class Artifactorys(ArtifactoryDocument):
    name: PlainText = ""


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=lambda value: ascii(value)[:20])
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_field(
    one: RunningCluster, field: str, value: Any
) -> None:
    method, path = CALLS[field]
    status, message = errors_of(one.admin.request(method, path, json.dumps({field: value}).encode()))
    assert status == 400 and f" {field}: " in message


@pytest.mark.parametrize("field", CALLS)
def test_a_field_of_no_meaning_is_refused_by_the_calls_of_holdfast(one: RunningCluster, field: str) -> None:
    method, path = CALLS[field]
    status, message = errors_of(one.admin.request(method, path, b'{"weight": 1, "copies": 1, "value": 1, "other": 1}'))
    assert status == 400 and "Extra inputs" in message


@pytest.mark.parametrize("field", ["weight", "copies", "value"])
def test_a_field_that_is_needed_is_missed(one: RunningCluster, field: str) -> None:
    status, message = errors_of(one.admin.request(*CALLS[field], b"{}"))
    assert status == 400 and f" {field}: " in message


def test_what_artifactorys_clients_say_beside_is_ignored() -> None:
    assert validated({"name": "a", "other": 1}, Artifactorys).name == "a"


@pytest.mark.parametrize(
    "document", [{"name": "a\0"}, {"name": "toolong"}, {"name": None}, {"other": 1}, {"\ud800": 1}]
)
def test_a_fault_is_told_with_its_place(document: Any) -> None:
    with pytest.raises(RequestError, match=r"^The body cannot be read: \S"):
        validated(document, Own)
