"""The maintenance jobs as Artifactory tells of its tasks (``api/tasks``): of all nodes, whichever is asked."""

from __future__ import annotations

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import json_response
from repo_node.api.system_info import node_headers
from repo_node.auth.permissions import Permission
from repo_node.db import jobs
from repo_node.web.descriptions import described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE
from sharding.maintenance.job import JobState

STATES = {
    JobState.RUNNING: "running",
    JobState.IDLE: "scheduled",
    JobState.FAILED: "scheduled",
    JobState.DISABLED: "stopped",
}
"""In Artifactory's words. One that failed tries again by itself; its description says so."""

DESCRIPTIONS = {
    "repair": "Makes copies that are missing",
    "walk": "Walks over the replicas of shards whose state calls for it",
    "census": "Counts the copies of every blob",
    "verdict": "Declares silent shards lost",
    "rebalance": "Moves copies to where the ring wants them",
    "trim": "Removes surplus copies",
    "removal": "Removes files that are no longer needed",
    "gc": "Collects content that nothing refers to",
    "gc_feed": "Looks for content that nothing refers to and nobody released",
    "trash": "Lets go of what has been in the trash for long",
    "usage": "Adds up what repositories with a quota use",
    "storageinfo": "Counts what is stored",
    "audit": "Lets go of old entries of the audit log",
    "tokens": "Lets go of tokens that have ended and of old wrong logins",
    "schedule": "Asks all nodes for what is scheduled",
    "judge": "Reads suspect copies again",
    "scrub": "Reads every copy again and compares it with its digests",
    "presence": "Looks for missing files",
    "reconcile": "Compares the files of a shard with the database",
    "backup": "Backs the database up to shards",
}


class TaskDocument(TypedDict):
    id: str
    type: str
    state: str
    description: str
    nodeId: str


class Tasks(TypedDict):
    tasks: list[TaskDocument]


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/tasks", list_tasks, Permission.ADMIN)


@described({200: Tasks})
async def list_tasks(request: web.Request) -> web.StreamResponse:
    """List the maintenance jobs of every node."""
    rows = await jobs.list_all(request.app[NODE].database)
    return json_response({"tasks": [task_document(one) for one in rows]}, headers=node_headers(request))


def task_document(row: jobs.JobRow) -> TaskDocument:
    """Return a job of a node; nothing runs on a node that is down, whatever it said last."""
    return {
        "id": f"{row.job}@{row.node}",
        "type": row.job,
        "state": STATES[row.state] if row.node_up else "stopped",
        "description": describe(row),
        "nodeId": row.node,
    }


def describe(row: jobs.JobRow) -> str:
    text = DESCRIPTIONS.get(row.job, row.job)
    return f"{text}; the last run failed: {row.last_error}" if row.state is JobState.FAILED else text
