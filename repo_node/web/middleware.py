"""The one middleware every request passes: request id, authentication, permission, errors, log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from repo_node.auth.permissions import ANONYMOUS, Permission
from repo_node.db.errors import CatalogueUnavailable
from repo_node.errors import Answer, Forbidden, NotFound, Unauthenticated, absent, answer_for
from repo_node.logs import REQUESTS, RequestRecord
from repo_node.logs import request_id as current_request_id
from repo_node.paths import ArtifactPath
from repo_node.read_only import require_heard, require_writable
from repo_node.views import View
from repo_node.web.addresses import client_address
from repo_node.web.body import leave_unread
from repo_node.web.context import (
    NOBODY,
    PRINCIPAL,
    REFUSED,
    REQUEST_ID,
    SERVICES,
    TARGET,
    artifact_at,
    principal_of,
    refusal,
    require,
    require_below,
)
from repo_node.web.routes import Declared, Place, WhileReadOnly, declared_by
from repo_node.web.state import NODE
from sharding.identifiers import uuid7

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(REQUESTS)

ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"})
CLIENT_GONE = 499
"""Logged, never sent: the client left before its answer was complete."""


@web.middleware
async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer one request, whatever happens in its handler."""
    began = time.perf_counter()
    offered = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = identity = offered if ACCEPTED_ID.fullmatch(offered) else uuid7().hex
    current_request_id.set(identity)
    node, declared = request.app[NODE], declared_by(request)
    node.in_flight += 1
    status = CLIENT_GONE
    try:
        response = await handle(request, declared, handler)
        status = response.status
        return response
    finally:
        node.in_flight -= 1
        record(request, declared.template, status, time.perf_counter() - began)


async def complete_head(request: web.Request, response: web.StreamResponse) -> None:
    """Set what every answer carries. While the node leaves, clients are told to come back by another connection."""
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.app[NODE].is_leaving:
        response.force_close()
        response.headers["Connection"] = "close"


async def handle(request: web.Request, declared: Declared, handler: Handler) -> web.StreamResponse:
    try:
        if REFUSED in request:
            raise request[REFUSED]
        if declared.permission is Permission.PUBLIC:
            return await handler(request)
        await let_in(request, declared)
        refuse_while_read_only(request, declared.while_read_only)
        with request.app[SERVICES].admission.admitted(principal_of(request).name):
            return await handler(request)
    except web.HTTPException as error:
        return refuse(request, Answer(error.status, error.reason), error.headers)
    except ConnectionError:
        raise
    except NotFound as error:
        return answer_error(request, absent(error, fresh=request.app[NODE].is_fresh))
    except Forbidden as error:
        return answer_error(request, as_told(request, declared.place, error))
    except Exception as error:
        return answer_error(request, error)


def refuse_while_read_only(request: web.Request, declared: WhileReadOnly) -> None:
    """Raise ``ReadOnly`` where the request may change nothing now."""
    match declared:
        case WhileReadOnly.REFUSED:
            require_heard(request.app[SERVICES].settings)
        case WhileReadOnly.REFUSED_BY_POSTGRES:
            require_writable(request.app[SERVICES].settings)


async def let_in(request: web.Request, declared: Declared) -> None:
    """Authorise a request, or find that its body proves who sends it. Raises as ``authorise``."""
    try:
        await authorise(request, declared)
    except (Unauthenticated, Forbidden):
        proof = declared.proved_by
        if proof is None or not await proof(request):
            raise


async def authorise(request: web.Request, declared: Declared) -> None:
    """Prove who the client is and that the route allows them. Raises ``Unauthenticated``, ``Forbidden``."""
    permission, services = declared.permission, request.app[SERVICES]
    try:
        reading = permission is Permission.READ
        address = client_address(request) or ""
        principal = await services.authenticator.authenticate(request.headers, reading=reading, address=address)
    except Unauthenticated:
        services.metrics.auth_failures.labels("wrong_credentials").inc()
        raise
    if principal is None:
        services.metrics.auth_failures.labels("no_credentials").inc()
        raise Unauthenticated("Authentication is required.")
    request[PRINCIPAL] = principal
    try:
        await require_in_place(request, permission, declared.place)
    except Forbidden:
        services.metrics.auth_failures.labels("forbidden").inc()
        raise


async def require_in_place(request: web.Request, permission: Permission, place: Place | None) -> None:
    """Require the permission of a route where the route needs it. Raises ``Forbidden``, ``BadPath``."""
    if place is None or not place.skip or principal_of(request).is_unlimited(permission):
        require(request, permission)
    elif (view := await view_of(request, place)) is not None:
        require_through(request, permission, view, place)
    elif place.below:
        require_below(request, permission, artifact_at(request, place.skip))
    else:
        require(request, permission, artifact_at(request, place.skip))


async def view_of(request: web.Request, place: Place) -> View | None:
    """Return the virtual repository that a request is for, None for another or where it is not known."""
    try:
        return await request.app[SERVICES].repositories.view(artifact_at(request, place.skip).repository)
    except (NotFound, CatalogueUnavailable):
        return None


def require_through(request: web.Request, permission: Permission, view: View, place: Place) -> None:
    """Require a permission where what is asked of a virtual repository may lie. Raises ``Forbidden``.

    An upload goes to one place; of several that can be read, one is enough: the handler looks into no other. Whatever
    else is asked of a virtual repository is refused by its handler, to whoever may know that it is one.
    """
    at, scope = artifact_at(request, place.skip), principal_of(request).readable()
    if permission is Permission.READ:
        reads = any(scope.allows(one.repository, one.path) for one in view.places(at))
        if not (reads or (place.below and view.reaches(at, scope))):
            raise refusal(request, permission, at)
        return
    target = view.deploy_place(at) if permission is Permission.WRITE else None
    if not principal_of(request).may(permission, target):
        raise refusal(request, permission, target if target and scope.reaches(target.repository) else at)
    if target is None and not view.reaches(ArtifactPath(at.repository, "", ""), scope):
        raise refusal(request, permission, at)


def as_told(request: web.Request, place: Place | None, error: Forbidden) -> Exception:
    """Return how a refusal is told: who brought no credentials may bring some; others may not know what is there."""
    principal = principal_of(request)
    if principal.name == ANONYMOUS:
        return Unauthenticated("Authentication is required.")
    hides = request.app[SERVICES].settings.now.hide_unauthorised_resources
    if hides and place is not None and error.at is not None and not principal.may_below(Permission.READ, error.at):
        return absent(NotFound(place.absent), fresh=request.app[NODE].is_fresh)
    return error


def answer_error(request: web.Request, error: Exception) -> web.StreamResponse:
    """Turn a failure into its answer, or break the connection where an answer has begun."""
    if isinstance(error, (web.RequestPayloadError, HttpProcessingError)):
        found: Answer | None = Answer(400, "The body broke off or could not be read. Nothing was stored.")
    else:
        found = answer_for(error)
    if found is None:
        log.exception("unexpected failure", exc_info=error)
        found = Answer(500, "An unexpected failure; the node's log has it under this request's id.")
    elif found.status >= 500:
        log.warning("request failed", extra={"facts": {"status": found.status, "cause": str(error)}})
    if request.writer.output_size:
        # Bytes are on their way: the one honest end left is a broken connection.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer broke off") from error
    extra: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        extra["WWW-Authenticate"] = 'Basic realm="Holdfast", charset="UTF-8"'
    if found.may_retry:
        extra["Retry-After"] = str(request.app[SERVICES].settings.now.retry_after_seconds)
    return refuse(request, found, extra)


def refuse(request: web.Request, found: Answer, headers: Mapping[str, str]) -> web.Response:
    """Return the error body every client of Artifactory's API understands."""
    response = web.Response(status=found.status, body=found.body(), content_type="application/json")
    for name in ("WWW-Authenticate", "Retry-After", "Allow", "Content-Range"):
        if name in headers:
            response.headers[name] = headers[name]
    leave_unread(request, response)
    return response


def record(request: web.Request, route: str, status: int, seconds: float) -> None:
    """Count the request and write its line of the log."""
    metrics = request.app[SERVICES].metrics
    method = request.method if request.method in METHODS else "other"
    metrics.requests.labels(method, route, status).inc()
    metrics.request_seconds.labels(method, route).observe(seconds)
    if log.isEnabledFor(logging.INFO):
        facts = {
            "method": method,
            "path": str(request[TARGET]) if TARGET in request else "(refused)",
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "principal": request.get(PRINCIPAL, NOBODY).name,
            "client": client_address(request),
        }
        log.handle(RequestRecord(facts))
