"""What is stored, as Artifactory tells it (``api/storageinfo``): by the last count, for a count reads it all."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import Time, json_response, timestamp
from repo_node.api.system_info import node_headers
from repo_node.auth.permissions import Permission
from repo_node.db import jobs, storage_summary
from repo_node.db.repositories import Repository
from repo_node.db.storage_summary import NOTHING, Space, StorageSummary, Stored
from repo_node.errors import Overloaded
from repo_node.storage_summary import StorageSummaryJob
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES
from repo_node.web.descriptions import described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

PATH = "/artifactory/api/storageinfo"
UNITS = ("KB", "MB", "GB", "TB")
"""Of 1,024 each; no client knows a larger one."""

TRASH_KEY = "auto-trashcan"


class BinariesDocument(TypedDict):
    binariesCount: str
    binariesSize: str
    artifactsSize: str
    optimization: str
    itemsCount: str
    artifactsCount: str


class FileStoreDocument(TypedDict):
    storageType: str
    storageDirectory: str
    totalSpace: str
    usedSpace: str
    freeSpace: str


class RepositorySummary(TypedDict):
    repoKey: str
    repoType: str
    foldersCount: int
    filesCount: int
    usedSpace: str
    usedSpaceInBytes: int
    itemsCount: int
    packageType: str
    projectKey: str
    percentage: str


class StorageInfo(TypedDict):
    binariesSummary: BinariesDocument
    fileStoreSummary: FileStoreDocument
    repositoriesSummaryList: list[RepositorySummary]
    calculatedAt: Time


class Scheduled(TypedDict):
    info: str


def add_routes(routes: Routes) -> None:
    routes.add("GET", PATH, read, Permission.ADMIN)
    routes.add("POST", f"{PATH}/calculate", calculate, Permission.ADMIN)


@described({200: StorageInfo})
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with what was counted last; the repositories are those that are there now."""
    summary, space = await storage_summary.read(request.app[NODE].database)
    if summary is None:
        raise Overloaded("What is stored is being counted for the first time; retry.")
    repositories = await request.app[SERVICES].repositories.list_all()
    document: StorageInfo = {
        "binariesSummary": binaries_document(summary, artifacts_of(summary)),
        "fileStoreSummary": file_store_document(request, space),
        "repositoriesSummaryList": repository_documents(summary, repositories),
        "calculatedAt": timestamp(summary.calculated_at),
    }
    return json_response(document, headers=node_headers(request))


@described({202: Scheduled})
async def calculate(request: web.Request) -> web.StreamResponse:
    """Let the primary count anew. Who asks while it counts gets one more count after that, however many ask."""
    asked = await jobs.request(request.app[NODE].database, StorageSummaryJob.name, None, by=origin_of(request))
    if not asked:
        raise Overloaded("No node can count what is stored now; retry.")
    return json_response({"info": "Calculating storage summary task was successfully scheduled to run"}, status=202)


def artifacts_of(summary: StorageSummary) -> Stored:
    """Return what all repositories hold, and the trash."""
    every = [*summary.repositories.values(), summary.trash]
    return Stored(*(sum(column) for column in zip(*every, strict=True)))


def binaries_document(summary: StorageSummary, artifacts: Stored) -> BinariesDocument:
    return {
        "binariesCount": f"{summary.binaries:,}",
        "binariesSize": say_size(summary.binaries_bytes),
        "artifactsSize": say_size(artifacts.bytes),
        "optimization": say_share(summary.binaries_bytes, artifacts.bytes),
        "itemsCount": f"{artifacts.files + artifacts.folders:,}",
        "artifactsCount": f"{artifacts.files:,}",
    }


def file_store_document(request: web.Request, space: Space) -> FileStoreDocument:
    """Return how much room there is: as ``df`` has it, whoever else keeps files there."""
    cluster = request.app[NODE].cluster()
    used = space.total_bytes - space.free_bytes
    zones = {shard.member.zone for shard in cluster.shards.values()}
    return {
        "storageType": "sharding-cluster",
        "storageDirectory": f"{len(cluster.shards)} shards in {len(zones)} zones",
        "totalSpace": say_size(space.total_bytes),
        "usedSpace": f"{say_size(used)} ({say_share(used, space.total_bytes)})",
        "freeSpace": f"{say_size(space.free_bytes)} ({say_share(space.free_bytes, space.total_bytes)})",
    }


def repository_documents(summary: StorageSummary, repositories: Iterable[Repository]) -> list[RepositorySummary]:
    """Return a row for each repository, one for the trash, and their total. A virtual one holds nothing itself."""
    total = artifacts_of(summary)
    rows = [
        row(
            one.key, one.rclass.upper(), one.package_type.capitalize(), summary.repositories.get(one.id, NOTHING), total
        )
        for one in sorted(repositories, key=lambda one: one.key)
    ]
    trash = row(TRASH_KEY, "NA", "Trash", summary.trash, total)
    whole = row("TOTAL", "NA", "NA", total, total)
    return [*rows, trash, whole]


def row(key: str, kind: str, package_type: str, stored: Stored, total: Stored) -> RepositorySummary:
    return {
        "repoKey": key,
        "repoType": kind,
        "foldersCount": stored.folders,
        "filesCount": stored.files,
        "usedSpace": say_size(stored.bytes),
        "usedSpaceInBytes": stored.bytes,
        "itemsCount": stored.folders + stored.files,
        "packageType": package_type,
        "projectKey": "default",
        "percentage": say_share(stored.bytes, total.bytes),
    }


def say_size(count_bytes: int) -> str:
    """Return a size as Artifactory writes it and its clients parse it: ``0 bytes``, ``1.50 KB``, ``2,048.00 TB``."""
    if count_bytes < 1024:
        return f"{count_bytes} bytes"
    exponent = min((count_bytes.bit_length() - 1) // 10, len(UNITS))
    return f"{count_bytes / 1024**exponent:,.2f} {UNITS[exponent - 1]}"


def say_share(part: int, whole: int) -> str:
    return f"{100 * part / whole:,.2f}%" if part and whole else "0%"
