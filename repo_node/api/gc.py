"""Garbage collection over REST: a run, what one would remove, and what holds deletions."""

from __future__ import annotations

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, PlainText, read_as
from repo_node.api.documents import Sha256, Time, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db import holds, jobs
from repo_node.db.garbage import GarbageRows
from repo_node.db.removals import RemovalRows
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES
from repo_node.web.descriptions import TEXT, Body, Count, described
from repo_node.web.queries import number
from repo_node.web.routes import Routes
from repo_node.web.state import NODE
from sharding.maintenance.gc import Candidate, Gc, GcLimits, blobs_allowed

BASE = "/artifactory/api/holdfast/gc"
CANDIDATES_MAX = 5_000
DETAIL_CHARACTERS_MAX = 500


class PrimaryDocument(TypedDict):
    node: str
    epoch: int


class HoldState(TypedDict):
    reason: str
    detail: str
    since: Time


class Removals(TypedDict):
    files: int
    bytes: int


class GcState(TypedDict):
    primary: PrimaryDocument | None
    holds: list[HoldState]
    grace_seconds: float
    blobs: int
    blobs_allowed: int
    removals: Removals


class CandidateDocument(TypedDict):
    sha256: Sha256
    size: int
    files: int
    since: Time
    reason: str
    goes: bool
    because: str


class Candidates(TypedDict):
    candidates: list[CandidateDocument]
    next_after: int | None


class HoldDocument(OwnDocument):
    """Why deletions are held."""

    detail: PlainText = Field("an operator wants it", min_length=1, max_length=DETAIL_CHARACTERS_MAX)


class Placed(TypedDict):
    placed: bool


class Released(TypedDict):
    released: list[str]


def add_routes(routes: Routes) -> None:
    routes.add("POST", "/artifactory/api/system/storage/gc", run_gc, Permission.ADMIN)
    routes.add("GET", BASE, read_state, Permission.ADMIN)
    routes.add("GET", f"{BASE}/candidates", list_candidates, Permission.ADMIN)
    routes.add("POST", f"{BASE}/hold", hold, Permission.ADMIN)
    routes.add("POST", f"{BASE}/release", release, Permission.ADMIN)


@described({200: TEXT})
async def run_gc(request: web.Request) -> web.StreamResponse:
    """Start a run on the primary node; it goes on after the answer, as Artifactory's does."""
    database = request.app[NODE].database
    if held := await holds.read(database):
        return web.Response(text=f"Garbage collection is held: {held[0].detail}\n")
    await jobs.request(database, Gc.name, None, by=origin_of(request))
    return web.Response(text="Garbage collection was started.\n")


@described({200: GcState})
async def read_state(request: web.Request) -> web.StreamResponse:
    """Answer with the primary, what holds deletions, what a run may remove, and what waits to be removed."""
    node, database = request.app[NODE], request.app[NODE].database
    garbage, primary = GarbageRows(database), node.primary()
    limits = limits_of(request)
    blobs = await garbage.blobs()
    backlog = await RemovalRows(database).backlog(list(node.cluster().shards))
    return json_response(
        {
            "primary": primary and {"node": primary.node, "epoch": primary.epoch},
            "holds": [
                {"reason": one.reason, "detail": one.detail, "since": timestamp(one.since)}
                for one in await holds.read(database)
            ],
            "grace_seconds": limits.grace_seconds,
            "blobs": blobs,
            "blobs_allowed": blobs_allowed(limits, blobs, await garbage.allowance()),
            "removals": {"files": backlog.files, "bytes": backlog.bytes},
        }
    )


def limits_of(request: web.Request) -> GcLimits:
    now = request.app[SERVICES].settings.now
    return GcLimits(now.gc_grace_seconds, now.gc_percent_max, now.gc_blobs_max, now.gc_brake_blobs_min)


@described({200: Candidates}, query={"after": Count, "limit": Count})
async def list_candidates(request: web.Request) -> web.StreamResponse:
    """Answer with a page of candidates and what a run would do with each: the dry run. Nothing is written."""
    after, count = number(request, "after", 0), number(request, "limit", CANDIDATES_MAX)
    count = max(1, min(count, CANDIDATES_MAX))
    garbage = GarbageRows(request.app[NODE].database)
    found = await garbage.candidates(after, count, limits_of(request).grace_seconds)
    return json_response(
        {
            "candidates": [candidate_document(one) for one in found],
            "next_after": found[-1].blob if len(found) == count else None,
        }
    )


def candidate_document(one: Candidate) -> CandidateDocument:
    return {
        "sha256": one.sha256.hex(),
        "size": one.size,
        "files": one.files,
        "since": timestamp(one.since),
        "reason": one.reason,
        "goes": one.goes,
        "because": "something refers to it" if one.referenced else "nothing refers to it"
        if one.due else "its grace is not over",
    }  # fmt: skip


@described({200: Placed}, body=Body.of(HoldDocument, required=False))
async def hold(request: web.Request) -> web.StreamResponse:
    """Hold every deletion until it is released."""
    detail, by = (await read_as(request, HoldDocument)).detail, origin_of(request)
    placed = await holds.place(request.app[NODE].database, "operator", f"{detail} ({by.principal})", by=by)
    return json_response({"placed": placed})


@described({200: Released})
async def release(request: web.Request) -> web.StreamResponse:
    """Let deletions go on, whatever held them."""
    released = await holds.release(request.app[NODE].database, by=origin_of(request))
    return json_response({"released": released})
