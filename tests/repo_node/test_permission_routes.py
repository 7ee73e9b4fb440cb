"""Every route asks for its permission: who has less is let in no further."""

from __future__ import annotations

import pytest
from aiohttp import web

from repo_node.auth.permissions import Permission
from repo_node.web.routes import Place, Routes
from tests.repo_node.nodes import RunningCluster
from tests.repo_node.people import client_of, grant, new_user
from tests.repo_node.test_auth import ROUTES, filled

FREE = {Permission.PUBLIC, Permission.ACCOUNT}


@pytest.mark.parametrize("actions", [(), ("read",)], ids=["powerless", "read-only"])
def test_s4_no_route_lets_a_lower_user_in_further_than_their_rights(
    one: RunningCluster, actions: tuple[str, ...]
) -> None:
    user = new_user(one)
    if actions:
        grant(one, user, actions, ["ANY"])
    who = client_of(one, user)
    for method, template, permission in ROUTES:
        if permission in FREE:
            continue
        status = who.request(method, filled(template)).status
        assert (status == 403) is (permission not in actions), (method, template, status)
    assert one.sql("SELECT * FROM events WHERE principal = $1", user) == []


MUTATORS = ["{}/", "/{}", "{};k=v", "{}%2F", "{}/.", "{}//", "{}/../x", "{}?x=1"]


@pytest.mark.parametrize("mutator", MUTATORS)
def test_s3_no_way_to_write_the_path_of_a_route_opens_it(one: RunningCluster, mutator: str) -> None:
    who = client_of(one, new_user(one))
    for method, template, permission in ROUTES:
        if permission in FREE or method == "HEAD":
            continue
        status = who.request(method, mutator.format(filled(template))).status
        assert status in (400, 403), (method, template, status)


def test_s4_a_route_for_artifacts_without_a_place_cannot_be_added() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise AssertionError

    routes = Routes(web.Application())
    with pytest.raises(ValueError, match="at which path"):
        routes.add("GET", "/new", handler, Permission.READ)
    with pytest.raises(ValueError, match="at which path"):
        routes.add("GET", "/new", handler, Permission.ADMIN, at=Place(1))
