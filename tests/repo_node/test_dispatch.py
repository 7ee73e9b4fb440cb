"""Which requests go past the router: those for which it would find the routes of artifacts, and no other."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from repo_node.api.public import public_app
from repo_node.auth.permissions import Permission
from repo_node.paths import parse_target
from repo_node.web.context import TARGET
from repo_node.web.descriptions import described
from repo_node.web.dispatch import ArtifactRoutes, is_of_artifacts
from repo_node.web.routes import Routes

APP = public_app(None, None)  # type: ignore[arg-type]
ARTIFACT_ROUTES = ArtifactRoutes(APP)
WORDS = sorted({word for route in APP.router.routes() for word in route.resource.canonical.split("/") if word})  # type: ignore[union-attr]
SEGMENTS = st.sampled_from([*WORDS, "generic-local", "a.bin", "%61pi", "Api", "a b", "x;y=z"])
METHODS = st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS"])


@given(METHODS, st.lists(SEGMENTS, min_size=1, max_size=6), st.booleans())
def test_whatever_goes_past_the_router_is_what_it_would_have_found(
    method: str, segments: list[str], is_folder: bool
) -> None:
    target = parse_target("/" + "/".join([segment.replace(" ", "%20") for segment in segments]) + "/" * is_folder)
    request = make_mocked_request(method, target.encoded)
    request[TARGET] = target
    found = ARTIFACT_ROUTES.match(request)
    routed = asyncio.run(APP.router.resolve(request)).route
    if found is not None:
        assert found.route is routed
    elif is_of_artifacts(routed):
        # An unknown name below the API is left to the router, which takes it for a path of artifacts.
        assert target.segments[1] in {"api", "access"}


def test_an_artifact_goes_past_the_router() -> None:
    target = parse_target("/artifactory/generic-local/a/b.bin")
    request = make_mocked_request("GET", target.encoded)
    assert ARTIFACT_ROUTES.match(request) is None
    request[TARGET] = target
    found = ARTIFACT_ROUTES.match(request)
    assert found is not None
    assert is_of_artifacts(found.route)


def test_a_route_that_would_hide_artifacts_is_refused() -> None:
    @described({200: None})
    async def handler(request: web.Request) -> web.StreamResponse:
        """Do nothing."""
        raise NotImplementedError

    app = web.Application()
    Routes(app).add("GET", "/artifactory/{repository}/status", handler, Permission.PUBLIC)
    with pytest.raises(ValueError, match="repository"):
        ArtifactRoutes(app)
