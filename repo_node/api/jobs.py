"""The maintenance jobs over REST: how they stand on every node, and asking for a run."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, PlainText, read_as
from repo_node.api.documents import Time, json_response
from repo_node.auth.permissions import Permission
from repo_node.db import jobs
from repo_node.errors import NotFound
from repo_node.web.addresses import origin_of
from repo_node.web.context import TARGET
from repo_node.web.descriptions import Body, described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

BASE = "/artifactory/api/holdfast/jobs"


class JobDocument(TypedDict):
    job: str
    node: str
    node_up: bool
    state: str
    done: int
    total: int | None
    moved_bytes: int
    seconds_left: float | None
    last_error: str | None
    started_at: Time | None
    finished_at: Time | None
    finished_age_seconds: float | None
    requested_at: Time | None
    answered_at: Time | None


class Jobs(TypedDict):
    jobs: list[JobDocument]


class RunDocument(OwnDocument):
    node: PlainText | None = None


class AskedNode(TypedDict):
    node: str
    requested_at: Time | None


class Asked(TypedDict):
    job: str
    nodes: list[AskedNode]


def add_routes(routes: Routes) -> None:
    routes.add("GET", BASE, list_jobs, Permission.ADMIN)
    routes.add("POST", f"{BASE}/{{job}}/run", run_job, Permission.ADMIN)


@described({200: Jobs})
async def list_jobs(request: web.Request) -> web.StreamResponse:
    """List the maintenance jobs of every node, and how they stand."""
    return json_response({"jobs": [document_of(row) for row in await jobs.list_all(request.app[NODE].database)]})


@described({202: Asked}, body=Body.of(RunDocument, required=False))
async def run_job(request: web.Request) -> web.StreamResponse:
    """Ask for a run that begins from now on, on every living node or on ``node``; it goes on after the answer."""
    job, node = request[TARGET].segments[4], (await read_as(request, RunDocument)).node
    asked = await jobs.request(request.app[NODE].database, job, node, by=origin_of(request))
    if not asked:
        where = "any living node" if node is None else f"a living node {node}"
        raise NotFound(f"There is no job {job} on {where}; GET {BASE} lists all jobs.")
    nodes = [{"node": one, "requested_at": exact(at)} for one, at in asked.items()]
    return json_response({"job": job, "nodes": nodes}, status=202)


def document_of(row: jobs.JobRow) -> JobDocument:
    age = row.finished_age_seconds
    return {
        "job": row.job,
        "node": row.node,
        "node_up": row.node_up,
        "state": row.state.value,
        "done": row.done,
        "total": row.total,
        "moved_bytes": row.moved_bytes,
        "seconds_left": row.seconds_left,
        "last_error": row.last_error,
        "started_at": exact(row.started_at),
        "finished_at": exact(row.finished_at),
        "finished_age_seconds": None if age is None else round(age, 3),
        "requested_at": exact(row.requested_at),
        "answered_at": exact(row.answered_at),
    }


def exact(at: datetime | None) -> str | None:
    """Return a time with every digit Postgres has, all of one length: they are compared."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
