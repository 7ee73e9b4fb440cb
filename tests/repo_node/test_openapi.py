"""The description of the API: every route is in it, nothing else is, and it tells nothing of the node that serves it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import web

from repo_node.api.public import public_app
from repo_node.auth.permissions import Permission
from repo_node.web.descriptions import TEXT, Handler, described
from repo_node.web.openapi import openapi_of
from repo_node.web.routes import Routes
from tests.repo_node.nodes import PASSWORD, RunningCluster
from tests.repo_node.test_auth import ROUTES

PATH = "/artifactory/api/openapi.json"
DOCUMENT = openapi_of(public_app(None, None), "0")  # type: ignore[arg-type]


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ]


def template_of(path: str) -> str:
    """Return the route's template that a path of the document is made of."""
    assert "{item}" not in path
    return re.sub(r"\{repo\}(/\{path\})?$", "{item}", path)


def test_every_route_is_described_and_nothing_else() -> None:
    found = {
        (method.upper(), template_of(path), needs["x-holdfast-permission"]) for method, path, needs in operations()
    }
    assert found == {(method, template, permission.value) for method, template, permission in ROUTES}


def test_what_needs_a_permission_needs_credentials() -> None:
    for method, path, operation in operations():
        public = operation["x-holdfast-permission"] == "public"
        assert bool(operation["security"]) is not public, (method, path)
        # Changing a password proves who it is by its body.
        assert public or {"401", "403"} <= operation["responses"].keys(), (method, path)


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    for method, path, operation in operations():
        assert operation["summary"].endswith("."), (method, path)
        named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path)), (method, path)


def new_handler(doc: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise AssertionError

    handler.__doc__ = doc
    return handler


def test_a_route_without_a_description_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="not described"):
        Routes(web.Application()).add("GET", "/new", new_handler("Do something."), Permission.ADMIN)


def test_a_description_of_what_is_not_in_the_path_is_refused() -> None:
    handler = described({200: TEXT}, path={"name": str})(new_handler("Do something."))
    with pytest.raises(ValueError, match="name, which is not in /new"):
        Routes(web.Application()).add("GET", "/new", handler, Permission.ADMIN)


def test_a_handler_that_says_nothing_cannot_be_described() -> None:
    with pytest.raises(ValueError, match="no docstring"):
        described({200: TEXT})(new_handler(""))


def test_it_is_served_to_everybody_and_once(one: RunningCluster) -> None:
    client = one.first.client()
    answer = client.get(PATH)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json()["paths"] == DOCUMENT["paths"]
    again = client.get(PATH, If_None_Match=answer.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    assert client.get(PATH, If_None_Match='"another"').status == 200
    assert client.head(PATH).headers["Content-Length"] == str(len(answer.body))


def test_s13_it_is_the_same_on_every_node_and_tells_nothing_of_them(one: RunningCluster, three: RunningCluster) -> None:
    body = one.first.client().get(PATH).body
    assert all(node.client().get(PATH).body == body for node in three.nodes)
    config = one.first.config
    told = (config.node.id, config.node.zone, str(config.http.listen), str(config.shards[0].path), "generic-local")
    for secret in (*told, one.dsn, config.cluster_key.hex(), PASSWORD):
        assert secret.encode() not in body, secret
