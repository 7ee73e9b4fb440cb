"""The JSON documents of Artifactory's API for files and folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired
from urllib.parse import quote

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.checksums import checksums_of
from repo_node.db.artifacts import Child, Item
from repo_node.paths import ArtifactPath

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Checksums(TypedDict):
    sha256: Sha256
    sha1: NotRequired[str]
    md5: NotRequired[str]


class FileDocument(TypedDict):
    """An artifact; ``size`` is in bytes."""

    repo: str
    path: str
    created: Time
    createdBy: str
    downloadUri: str
    mimeType: str
    size: Annotated[str, Field(pattern="^[0-9]+$")]
    checksums: Checksums
    originalChecksums: Checksums
    uri: str


class FileInfo(FileDocument):
    lastModified: Time
    modifiedBy: str
    lastUpdated: Time


class ChildDocument(TypedDict):
    uri: str
    folder: bool


class FolderDocument(TypedDict):
    """A folder, or the root of a repository, which nobody made or changed."""

    repo: str
    path: str
    uri: str
    created: NotRequired[Time]
    createdBy: NotRequired[str]
    lastModified: NotRequired[Time]
    modifiedBy: NotRequired[str]
    lastUpdated: NotRequired[Time]


class FolderInfo(FolderDocument):
    children: list[ChildDocument]


def json_response(
    document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None, kind: str = "application/json"
) -> web.Response:
    """Return ``document`` as JSON."""
    return web.Response(status=status, body=to_json(document), content_type=kind, headers=headers)


encode = json.JSONEncoder(ensure_ascii=False).encode


def to_json(document: Any) -> bytes:
    return encode(document).encode()


def timestamp(at: datetime) -> str:
    """Return ISO 8601 with milliseconds and zone, as clients of Artifactory parse it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def storage_uri(base: str, at: ArtifactPath) -> str:
    return f"{base}/api/storage/{quoted(at)}"


def quoted(at: ArtifactPath) -> str:
    """Return a repository and the path in it as they stand in a URL."""
    return quote(f"{at.repository}/{at.path}" if at.path else at.repository)


def download_uri(base: str, at: ArtifactPath) -> str:
    return f"{base}/{quoted(at)}"


def file_document(
    base: str,
    at: ArtifactPath,
    *,
    created_at: datetime,
    created_by: str,
    size: int,
    media_type: str,
    checksums: Mapping[str, str],
    original: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a deploy answers; ``size`` is a string on the wire."""
    place = quoted(at)
    return {
        "repo": at.repository,
        "path": f"/{at.path}",
        "created": timestamp(created_at),
        "createdBy": created_by,
        "downloadUri": f"{base}/{place}",
        "mimeType": media_type,
        "size": str(size),
        "checksums": dict(checksums),
        "originalChecksums": dict(original),
        "uri": f"{base}/api/storage/{place}",
    }


def file_info(base: str, at: ArtifactPath, item: Item, media_type: str) -> dict[str, Any]:
    """Return the file info of ``GET api/storage``."""
    assert item.blob is not None
    blob = item.blob
    checksums = checksums_of(blob)
    document = file_document(
        base,
        at,
        created_at=item.created_at,
        created_by=item.created_by,
        size=blob.size,
        media_type=media_type,
        checksums=checksums,
        original=checksums,
    )
    document.update(
        lastModified=timestamp(item.modified_at), modifiedBy=item.modified_by, lastUpdated=timestamp(item.updated_at)
    )
    return document


def folder_document(base: str, at: ArtifactPath, item: Item | None) -> dict[str, Any]:
    """Return the folder info of ``GET api/storage`` without its children; the root of a repository has no item."""
    document: dict[str, Any] = {"repo": at.repository, "path": f"/{at.path}", "uri": storage_uri(base, at)}
    if item is not None:
        document.update(
            created=timestamp(item.created_at),
            createdBy=item.created_by,
            lastModified=timestamp(item.modified_at),
            modifiedBy=item.modified_by,
            lastUpdated=timestamp(item.updated_at),
        )
    return document


def child_documents(children: Sequence[Child]) -> list[dict[str, Any]]:
    """Return what stands last in a folder info."""
    return [{"uri": f"/{child.name}", "folder": child.is_folder} for child in children]
