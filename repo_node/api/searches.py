"""Searches (``GET api/search/...``, ``GET api/versions/...``), with ``X-Result-Detail``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired, Required

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.artifacts import DIGEST_BYTES, parse_digest
from repo_node.api.documents import (
    FileInfo,
    FolderDocument,
    Time,
    download_uri,
    file_info,
    folder_document,
    json_response,
    storage_uri,
    timestamp,
)
from repo_node.auth.permissions import Permission
from repo_node.db.artifacts import Item, place_of
from repo_node.db.searches import Hit, Times
from repo_node.errors import NotFound, RequestError
from repo_node.paths import ArtifactPath, check_property_key, check_property_value
from repo_node.searches import VERSION, Area, Wanted
from repo_node.versions import is_snapshot
from repo_node.web.context import SERVICES, TARGET, base_url, principal_of, require_below
from repo_node.web.descriptions import TEXT, Content, Flag, described
from repo_node.web.queries import flag
from repo_node.web.routes import ANYWHERE, Routes
from repo_node.web.streaming import media_type

SEARCH = "application/vnd.org.jfrog.artifactory.search"
PATTERN_CHARACTERS_MAX = 1_024
MILLISECONDS_MAX = 253_402_300_799_000
"""The end of the year 9999."""

TIME_FIELDS = {"created": "created", "lastModified": "modified", "lastDownloaded": "downloaded"}
ANY = "_any"
OWN = frozenset({"repos", "listFiles"})
"""Parameters of a search by properties that are no properties."""


Pattern = Annotated[str, Field(min_length=1, max_length=PATTERN_CHARACTERS_MAX)]
Milliseconds = Annotated[int, Field(ge=0, le=MILLISECONDS_MAX, description="Milliseconds since 1970.")]
REPOS = {"repos": Annotated[str, Field(description="Repositories, separated by commas; none: all.")]}
DIGESTS = {name: Annotated[str, Field(pattern=f"^[0-9A-Fa-f]{{{2 * size}}}$")] for name, size in DIGEST_BYTES.items()}
MODULE = {"g": Required[Pattern], "a": Required[Pattern], "v": Pattern, **REPOS}
DETAIL = {"X-Result-Detail": Annotated[str, Field(description="info, properties, or both with a comma between.")]}


class Uri(TypedDict):
    uri: str
    properties: NotRequired[dict[str, list[str]]]


class FileResult(FileInfo):
    properties: NotRequired[dict[str, list[str]]]


class FolderResult(FolderDocument):
    properties: NotRequired[dict[str, list[str]]]


class Results(TypedDict):
    """What was found, in the detail that was asked for."""

    results: list[FileResult | FolderResult | Uri]


class PathList(TypedDict):
    repositoryUri: str
    sourcePattern: str
    files: list[str]


class DatedResult(TypedDict):
    uri: str
    created: NotRequired[Time]
    lastModified: NotRequired[Time]
    lastDownloaded: NotRequired[Time]


class DatedResults(TypedDict):
    results: list[DatedResult]


class UsageResult(TypedDict):
    uri: str
    downloadCount: int
    lastDownloaded: NotRequired[Time]
    remoteDownloadCount: int


class UsageResults(TypedDict):
    results: list[UsageResult]


class Version(TypedDict):
    version: str
    integration: bool


class Versions(TypedDict):
    results: list[Version]


class LatestVersion(TypedDict):
    version: str
    artifacts: list[Uri]


def found(kind: str) -> Content:
    """Return how results of a kind are told."""
    return Content(f"{SEARCH}.{kind}+json", Results)


def add_routes(routes: Routes) -> None:
    for name, handler in SEARCHES.items():
        routes.add("GET", f"/artifactory/api/search/{name}", handler, Permission.READ, at=ANYWHERE)
    routes.add("GET", "/artifactory/api/versions/{item:.+}", latest_by_property, Permission.READ, at=ANYWHERE)


# ------------------------------------------------------------------ what is asked


def area_of(request: web.Request, *keys: str) -> Area:
    """Return what the caller may read, of the repositories given or else named in the query."""
    named = keys or filter(None, request.query.get("repos", "").split(","))
    return Area(frozenset(named), principal_of(request).readable())


def text(request: web.Request, name: str) -> str | None:
    """Return a part of a search, None for one that is not given. Raises ``RequestError``."""
    value = request.query.get(name) or None
    if value is not None and (len(value) > PATTERN_CHARACTERS_MAX or "\0" in value):
        raise RequestError(f"{name} is longer than {PATTERN_CHARACTERS_MAX} characters, or not plain text.")
    return value


def required(request: web.Request, name: str) -> str:
    if (value := text(request, name)) is None:
        raise RequestError(f"Say what to search for: ?{name}=...")
    return value


def time(request: web.Request, name: str, default: datetime | None = None) -> datetime:
    """Return a time that the query gives in milliseconds since 1970. Raises ``RequestError``."""
    value = request.query.get(name)
    if value is None and default is not None:
        return default
    if value is None or not (
        value.isascii() and value.isdigit() and len(value) <= 18 and int(value) <= MILLISECONDS_MAX
    ):
        raise RequestError(f"{name} must be a time in milliseconds since 1970.")
    return datetime.fromtimestamp(int(value) / 1000, UTC)


def wanted(request: web.Request) -> Wanted:
    """Return the properties that the query asks for. Raises ``RequestError``, ``BadPath``."""
    found: dict[str, list[str]] = {}
    for key, value in request.query.items():
        if key not in OWN:
            found.setdefault(check_property_key(key), []).extend(map(check_property_value, value.split(",")))
    return Wanted(found)


# ------------------------------------------------------------------ what is answered


def results(request: web.Request, hits: Sequence[Hit], kind: str) -> web.Response:
    """Answer with what was found, in the detail that was asked for."""
    detail = {word.strip() for word in request.headers.get("X-Result-Detail", "").lower().split(",")}
    base = base_url(request)
    return json_response({"results": [result(base, hit.item, detail) for hit in hits]}, kind=f"{SEARCH}.{kind}+json")


def result(base: str, item: Item, detail: Iterable[str]) -> dict[str, Any]:
    at = place_of(item)
    document: dict[str, Any] = {"uri": storage_uri(base, at)}
    if "info" in detail:
        whole = item.blob is not None
        document = file_info(base, at, item, media_type(at.name)) if whole else folder_document(base, at, item)
    if "properties" in detail:
        document["properties"] = dict(item.properties)
    return document


# ------------------------------------------------------------------ the searches


@described({200: found("ArtifactSearchResult")}, query={"name": Required[Pattern], **REPOS}, headers=DETAIL)
async def by_name(request: web.Request) -> web.StreamResponse:
    """Find artifacts and folders by their name, in which * and ? stand for others."""
    searches = request.app[SERVICES].searches
    hits = await searches.by_name(required(request, "name"), area_of(request))
    return results(request, hits, "ArtifactSearchResult")


@described({200: found("MetadataSearchResult")}, query=REPOS, headers=DETAIL)
async def by_properties(request: web.Request) -> web.StreamResponse:
    """Find artifacts and folders by properties: each parameter besides ``repos`` names one and its values."""
    asked = wanted(request)
    if not asked.properties:
        raise RequestError("Say which properties to search for: ?name=value.")
    hits = await request.app[SERVICES].searches.by_properties(asked, area_of(request))
    return results(request, hits, "MetadataSearchResult")


@described({200: found("ChecksumSearchResult")}, query={**DIGESTS, **REPOS}, headers=DETAIL)
async def by_checksum(request: web.Request) -> web.StreamResponse:
    """Find artifacts by a checksum of their content."""
    for kind in ("sha256", "sha1", "md5"):
        if kind in request.query:
            digest = parse_digest(kind, kind, request.query[kind])
            hits = await request.app[SERVICES].searches.by_digest(kind, digest, area_of(request))
            return results(request, hits, "ChecksumSearchResult")
    raise RequestError("Say which checksum to search for: ?sha256=, ?sha1= or ?md5=.")


@described({200: found("GavcSearchResult")}, query={**dict.fromkeys("gavc", Pattern), **REPOS}, headers=DETAIL)
async def by_gavc(request: web.Request) -> web.StreamResponse:
    """Find Maven artifacts by group, artifact, version and classifier."""
    parts = [text(request, name) for name in "gavc"]
    if not any(parts):
        raise RequestError("Say what to search for: ?g=, ?a=, ?v= or ?c=.")
    group, artifact, version, classifier = parts
    searches = request.app[SERVICES].searches
    hits = await searches.by_gavc(group, artifact, version, classifier, area_of(request))
    return results(request, hits, "GavcSearchResult")


@described({200: Content(f"{SEARCH}.PatternResultFileSet+json", PathList)}, query={"pattern": Required[Pattern]})
async def by_pattern(request: web.Request) -> web.StreamResponse:
    """Answer with the paths in one repository that match ``repository:pattern``."""
    asked = required(request, "pattern")
    key, colon, pattern = asked.partition(":")
    if not (key and colon and pattern):
        raise RequestError("pattern must be repository:pattern.")
    require_below(request, Permission.READ, ArtifactPath(key, "", ""))
    await request.app[SERVICES].repositories.get(key)
    hits = await request.app[SERVICES].searches.by_path(pattern.strip("/"), area_of(request, key))
    files = [hit.item.path for hit in hits]
    document = {"repositoryUri": f"{base_url(request)}/{key}", "sourcePattern": asked, "files": files}
    return json_response(document, kind=f"{SEARCH}.PatternResultFileSet+json")


@described(
    {200: Content(f"{SEARCH}.ArtifactResults+json", DatedResults)},
    query={"from": Required[Milliseconds], "to": Milliseconds, "dateFields": str, **REPOS},
)
async def by_dates(request: web.Request) -> web.StreamResponse:
    """Find artifacts by when they were created, modified or downloaded."""
    asked = request.query.get("dateFields", "created,lastModified,lastDownloaded").split(",")
    if unknown := set(asked) - set(TIME_FIELDS):
        raise RequestError(f"dateFields may name {', '.join(TIME_FIELDS)}, not {min(unknown)!r}.")
    hits = await between(request, Times(**{TIME_FIELDS[name]: True for name in asked}))
    base = base_url(request)
    documents = [{"uri": storage_uri(base, place_of(hit.item)), **times_of(hit, asked)} for hit in hits]
    return json_response({"results": documents}, kind=f"{SEARCH}.ArtifactResults+json")


@described(
    {200: Content(f"{SEARCH}.CreatedInRangeSearchResult+json", DatedResults)},
    query={"from": Required[Milliseconds], "to": Milliseconds, **REPOS},
)
async def by_creation(request: web.Request) -> web.StreamResponse:
    """Find artifacts by when they were created."""
    hits = await between(request, Times(created=True))
    base = base_url(request)
    documents = [{"uri": storage_uri(base, place_of(hit.item)), **times_of(hit, ["created"])} for hit in hits]
    return json_response({"results": documents}, kind=f"{SEARCH}.CreatedInRangeSearchResult+json")


async def between(request: web.Request, times: Times) -> list[Hit]:
    since, until = time(request, "from"), time(request, "to", datetime.now(UTC))
    return await request.app[SERVICES].searches.by_time(since, until, times, area_of(request))


def times_of(hit: Hit, names: Iterable[str]) -> dict[str, str]:
    times = {
        "created": hit.item.created_at,
        "lastModified": hit.item.modified_at,
        "lastDownloaded": hit.downloads.last_at,
    }
    return {name: timestamp(at) for name in names if (at := times[name]) is not None}


@described(
    {200: Content(f"{SEARCH}.ArtifactUsageResult+json", UsageResults)},
    query={"notUsedSince": Required[Milliseconds], "createdBefore": Milliseconds, **REPOS},
)
async def by_usage(request: web.Request) -> web.StreamResponse:
    """Find artifacts that were not downloaded since a time."""
    since = time(request, "notUsedSince")
    before = time(request, "createdBefore", since)
    hits = await request.app[SERVICES].searches.by_usage(since, before, area_of(request))
    base = base_url(request)
    documents = [
        {
            "uri": storage_uri(base, place_of(hit.item)),
            "downloadCount": hit.downloads.count,
            **times_of(hit, ["lastDownloaded"]),
            "remoteDownloadCount": 0,
        }
        for hit in hits
    ]
    return json_response({"results": documents}, kind=f"{SEARCH}.ArtifactUsageResult+json")


async def versions_of(request: web.Request) -> list[str]:
    """Return the versions of a Maven module, latest first, ``v`` narrowing them. Raises ``NotFound``."""
    group, artifact, narrowed = required(request, "g"), required(request, "a"), text(request, "v")
    found = await request.app[SERVICES].searches.versions(group, artifact, area_of(request))
    if narrowed is not None:
        found = [version for version in found if version.startswith(narrowed.removesuffix("*"))]
    if not found:
        raise NotFound("Unable to find artifact versions")
    return found


@described({200: Content(f"{SEARCH}.ArtifactVersionsResult+json", Versions)}, query=MODULE, errors={404})
async def all_versions(request: web.Request) -> web.StreamResponse:
    """List the versions of a Maven module, latest first."""
    found = await versions_of(request)
    documents = [{"version": version, "integration": is_snapshot(version)} for version in found]
    return json_response({"results": documents}, kind=f"{SEARCH}.ArtifactVersionsResult+json")


@described({200: TEXT}, query=MODULE, errors={404})
async def latest_version(request: web.Request) -> web.StreamResponse:
    """Answer with the latest release as text; with ``v`` the latest that begins so, a snapshot too."""
    found = await versions_of(request)
    releases = [version for version in found if not is_snapshot(version)]
    if not releases and "v" not in request.query:
        raise NotFound("Unable to find artifact versions")
    return web.Response(text=found[0] if "v" in request.query else releases[0])


@described({200: LatestVersion}, query={"listFiles": Flag}, root=True)
async def latest_by_property(request: web.Request) -> web.StreamResponse:
    """Answer with the highest ``version`` property below a path, and with ``listFiles=1`` what has it."""
    key, *segments = request[TARGET].segments[3:]
    searches, area = request.app[SERVICES].searches, area_of(request)
    if key != ANY:
        require_below(request, Permission.READ, ArtifactPath(key, "", ""))
        await request.app[SERVICES].repositories.get(key)
        area = area_of(request, key)
    path = "" if segments == [ANY] else "/".join(segments)
    listed = flag(request, "listFiles", False)
    found = await searches.latest_by_property(path, wanted(request), area, with_artifacts=listed)
    if found is None:
        raise NotFound(f"Unable to find an artifact with a property {VERSION} that is like this")
    base = base_url(request)
    artifacts = [{"uri": download_uri(base, place_of(hit.item))} for hit in found[1]]
    return json_response({"version": found[0], "artifacts": artifacts})


SEARCHES = {
    "artifact": by_name,
    "prop": by_properties,
    "checksum": by_checksum,
    "gavc": by_gavc,
    "pattern": by_pattern,
    "dates": by_dates,
    "creation": by_creation,
    "usage": by_usage,
    "versions": all_versions,
    "latestVersion": latest_version,
}
