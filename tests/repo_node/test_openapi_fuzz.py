"""Schemathesis sends what the description of the API allows, and what it does not: answers are as described."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.postgres import TestServer
from tests.repo_node.nodes import LOOPBACK, RunningCluster, configure, prepare, run_nodes
from tests.repo_node.test_openapi import DOCUMENT

EXAMPLES = 5
"""Of each operation, besides those that its description gives."""

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]

THERE = {
    "repo": ["libs-local", "fuzz-virtual", "nothing"],
    "path": ["a", "folder", "new.zip"],
    "key": ["fuzz-virtual", "fuzz-new", "ranges_max"],
    "name": ["someone", "readers", "nobody"],
    "id": ["1", "node-1", "99"],
    "job": ["scrub", "nothing"],
}
"""Names of what is there and of what is not: of names drawn at random none would be there."""

BASE = "/artifactory/api/holdfast"
SPARED = {
    ("post", f"{BASE}/nodes/{{id}}/stop"): "the node would end",
    ("post", f"{BASE}/nodes/{{id}}/{{action}}"): "uploads would find no shard",
    ("post", f"{BASE}/shards/{{id}}/{{action}}"): "uploads would find too few shards",
    ("delete", f"{BASE}/shards/{{id}}"): "as above",
}
"""What would take the ground away from all that follows is asked for things that are not there."""


def aim(case: schemathesis.Case) -> None:
    """Let a case that has names as they may be name what is there, or is not."""
    named = case.meta and case.meta.components.get(ParameterLocation.PATH)
    if not named or named.mode is GenerationMode.NEGATIVE:
        return
    spared = (case.operation.method, case.operation.path) in SPARED
    for name in case.path_parameters.keys() & THERE.keys():
        choice = ["99"] if spared else THERE[name]
        case.path_parameters[name] = choice[sum(map(ord, str(case.path_parameters[name]))) % len(choice)]


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the description with answers that have no fields but those described."""
    document = copy.deepcopy(document)
    requested = names_in([one.get("requestBody") for ways in document["paths"].values() for one in ways.values()])
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema and name not in requested:
            schema.setdefault("additionalProperties", False)
    return document


def names_in(part: Any) -> set[str]:
    """Return the definitions that a part of a document refers to."""
    match part:
        case {"$ref": str(reference)}:
            return {reference.rpartition("/")[2]}
        case dict():
            return set().union(*map(names_in, part.values()))
        case list():
            return set().union(*map(names_in, part))
        case _:
            return set()


SCHEMA = schemathesis.openapi.from_dict(closed(DOCUMENT)).exclude(method="HEAD")
"""Without HEAD, which every GET answers by the same code."""

SCHEMA.config.generation.update(with_security_parameters=False)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def fuzzed(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A node of these tests' own, with a little of everything."""
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        with run_nodes([configure(dsn, tmp_path_factory.mktemp("fuzzed"))]) as cluster:
            furnish(cluster)
            yield cluster


def furnish(cluster: RunningCluster) -> None:
    admin, base = cluster.admin, "/artifactory/api"
    for path, document in {
        "repositories/libs-local": {},
        "repositories/fuzz-virtual": {"rclass": "virtual", "repositories": ["libs-local"]},
        "security/users/someone": {"email": "someone@example.org", "internalPasswordDisabled": True},
        "security/groups/readers": {},
        "security/permissions/readers": {
            "repositories": ["libs-local"],
            "principals": {"users": {"someone": ["r"]}},
        },
    }.items():
        assert admin.put_json(f"{base}/{path}", document).status in (200, 201), path
    for path in ("a;version=1.0", "folder/b.txt", "org/example/module/1.0/module-1.0.jar"):
        assert admin.put(f"/artifactory/libs-local/{path}", b"content").status == 201


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_the_document_is_valid() -> None:
    SCHEMA.validate()


def test_what_is_spared_is_there() -> None:
    assert all(method in DOCUMENT["paths"][path] for method, path in SPARED)


STORAGE = "/artifactory/api/storage/{repo}/{path}"
RARE: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", STORAGE, {"path": "a"}, 200),
    ("GET", STORAGE, {"path": "folder"}, 200),
    ("GET", STORAGE, {"path": "folder", "list": "", "deep": "1", "mdTimestamps": "1", "includeRootPath": "1"}, 200),
    ("GET", STORAGE, {"path": "folder", "lastModified": ""}, 200),
    ("GET", STORAGE, {"path": "folder", "permissions": ""}, 200),
    ("GET", STORAGE, {"path": "a", "properties": ""}, 200),
    ("GET", STORAGE, {"path": "a", "stats": ""}, 200),
    ("GET", "/artifactory/api/storage/{repo}", {}, 200),
    ("POST", "/artifactory/api/copy/{repo}/{path}", {"path": "a", "to": "/libs-local/copied"}, 200),
    ("POST", "/artifactory/api/copy/{repo}/{path}", {"path": "folder", "to": "/libs-local/a"}, 409),
    ("POST", "/artifactory/api/move/{repo}/{path}", {"path": "copied", "to": "/libs-local/moved"}, 200),
    ("GET", "/artifactory/api/archive/download/{repo}/{path}", {"path": "folder", "archiveType": "tar.gz"}, 200),
    ("GET", "/artifactory/api/search/prop", {"version": "1.0"}, 200),
    ("DELETE", "/artifactory/{repo}/{path}", {"path": "moved"}, 204),
    ("GET", "/artifactory/api/holdfast/trash", {}, 200),
    ("POST", "/artifactory/api/trash/restore/{repo}/{path}", {"path": "moved"}, 202),
    ("PUT", "/artifactory/api/holdfast/settings/{key}", {"key": "ranges_max", "body": {"value": 7}}, 200),
    ("PUT", "/artifactory/api/holdfast/shards/{id}/weight", {"id": "1", "body": {"weight": 1.5}}, 200),
    ("POST", "/artifactory/api/holdfast/nodes/{id}/{action}", {"id": "node-1", "action": "activate"}, 200),
    ("GET", "/artifactory/api/v2/security/permissions/{name}", {"name": "readers"}, 200),
    ("GET", "/artifactory/api/versions/{repo}/{path}", {"path": "_any", "listFiles": "1"}, 200),
    ("PUT", STORAGE, {"path": "a", "properties": "b=1"}, 204),
    ("DELETE", STORAGE, {"path": "a", "properties": "b"}, 204),
    ("PATCH", "/artifactory/api/metadata/{repo}/{path}", {"path": "a", "body": {"props": {"b": ["1", None]}}}, 400),
    ("PATCH", "/artifactory/api/metadata/{repo}/{path}", {"path": "a", "body": {"props": {"b": [1], "c": None}}}, 204),
]
"""What is hardly ever drawn, in an order in which each can be fulfilled: the body and parameters, and what is answered."""


def test_what_is_hardly_drawn_is_answered_as_described(fuzzed: RunningCluster, session: requests.Session) -> None:
    url = f"http://{LOOPBACK}:{fuzzed.first.port}"
    credentials = {"Authorization": fuzzed.admin.authorization}
    for method, path, said, status in RARE:
        query = {"repo": "libs-local", **said} if "{repo}" in path else dict(said)
        named = {name: query.pop(name) for name in list(query) if f"{{{name}}}" in path}
        body = {"body": query.pop("body"), "media_type": "application/json"} if "body" in query else {}
        case = SCHEMA[path][method].Case(path_parameters=named, query=query, **body)
        assert case.call_and_validate(url, session=session, headers=credentials, checks=CHECKS).status_code == status


def cases_of(operation: Any) -> list[SearchStrategy[schemathesis.Case]]:
    """Return the examples that the description gives, and what else may be sent, with what may not."""
    drawn = operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return [*operation.get_strategies_from_examples(), drawn]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_answers_are_as_described(operation: Any, fuzzed: RunningCluster, session: requests.Session) -> None:
    url = f"http://{LOOPBACK}:{fuzzed.first.port}"
    credentials = {"Authorization": fuzzed.admin.authorization}

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def send(case: schemathesis.Case) -> None:
        aim(case)
        case.call_and_validate(url, session=session, headers=credentials, checks=CHECKS)
        if operation.definition.raw["security"]:
            # What is no path is refused to anybody.
            assert case.call(url, session=session).status_code in (400, 401)

    for cases in cases_of(operation):
        given(cases)(send)()
