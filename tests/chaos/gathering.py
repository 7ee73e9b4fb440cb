"""Looks at everything when all is over, once the cluster has come to rest: as its clients, and from inside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from tests.canaries import MARK, Watch
from tests.chaos.answers import ask_node
from tests.chaos.audit import EventRow
from tests.chaos.client import Client, open_session
from tests.chaos.evidence import BlobRow, Evidence, FileFound, Pass, Read, ReplicaRow, Term
from tests.chaos.following import follow_to_end
from tests.chaos.ledger import Violation
from tests.chaos.places import through_view
from tests.chaos.scene import REST_SECONDS_MAX, UPLOAD_SECONDS_MAX, Scene
from tests.cluster.processes import curl, status

T = TypeVar("T")

READ_SECONDS_MAX = 90.0
AT_ONCE = 16
CHECKS_MAX = 60
CHECK_PAUSE_SECONDS = 3.0
SNAPSHOTS_MAX = 6
SNAPSHOT_PAUSE_SECONDS = 5.0

BLOBS_SQL = """
    SELECT encode(b.sha256, 'hex') AS sha256, b.size, b.redundancy,
           (SELECT count(DISTINCT g.shard_id) FROM good_replicas(b.id) g)::int AS shards,
           (SELECT count(DISTINCT g.zone) FROM good_replicas(b.id) g)::int AS zones,
           EXISTS (SELECT FROM artifacts a WHERE a.blob_id = b.id) AS referenced
      FROM blobs b
"""
REPLICAS_SQL = """
    SELECT s.path AS shard, encode(b.sha256, 'hex') AS sha256, r.generation::text, b.size, r.state
      FROM replicas r JOIN shards s ON s.id = r.shard_id JOIN blobs b ON b.id = r.blob_id
"""
LISTED_SQL = (
    "SELECT generation::text FROM removals UNION SELECT generation::text FROM quarantine WHERE moved_at IS NULL"
)
QUEUES_SQL = """
    SELECT (SELECT count(*) FROM repair_queue) AS repairs, (SELECT count(*) FROM gc_candidates) AS candidates,
           (SELECT count(*) FROM removals) AS removals, (SELECT count(*) FROM quarantine WHERE moved_at IS NULL) AS unmoved
"""
USAGE_SQL = """
    SELECT r.key, used_bytes(r.id) AS counted,
           (SELECT coalesce(sum(b.size), 0)::bigint FROM artifacts a JOIN blobs b ON b.id = a.blob_id
             WHERE a.repo_id = r.id) AS summed
      FROM repositories r WHERE r.quota_bytes IS NOT NULL
"""
TERMS_SQL = """
    SELECT kind, (detail ->> 'epoch')::bigint AS epoch, extract(epoch FROM at)::float8 AS at,
           encode(sha256, 'hex') AS sha256
      FROM events WHERE kind IN ('primary', 'gc') ORDER BY id
"""
AUDIT_SQL = """
    SELECT id, extract(epoch FROM at)::float8 AS at, kind, coalesce(concat_ws('/', repository, path), '') AS place,
           encode(sha256, 'hex') AS sha256, principal, request_id, coalesce(detail, '{}')::text AS detail
      FROM events
     WHERE kind IN ('deploy', 'delete', 'folder', 'properties', 'copy', 'move', 'restore') OR request_id ~ '^chaos-'
     ORDER BY id
"""


async def gather(scene: Scene) -> Evidence:
    """Wait until the cluster has come to rest, and look at everything."""
    evidence = Evidence(ledger=scene.ledger)
    evidence.unrest = await come_to_rest(scene)
    await look_as_client(scene, evidence)
    scene.say(f"{len(evidence.reads)} paths are read; comparing shards and rows")
    evidence.passes = await scene.apart(check_until_clean, scene)
    for _ in range(SNAPSHOTS_MAX):
        await scene.apart(look_at_store, scene, evidence)
        # Copies may still be moving: what is seen once and gone at the next look was on its way.
        if is_consistent(evidence):
            break
        await asyncio.sleep(SNAPSHOT_PAUSE_SECONDS)
    await scene.apart(look_at_rest, scene, evidence)
    return evidence


async def gather_reads(scene: Scene) -> Evidence:
    """Look only at what clients see, of a cluster that may never come to rest."""
    async with Client(scene.url, scene.ledger) as client:
        return Evidence(ledger=scene.ledger, reads=await read_all(scene, client))


async def come_to_rest(scene: Scene) -> Sequence[Violation]:
    """Wait for every copy to be made and every queue to be empty; return what does not end."""
    left: list[str] = []

    def is_idle() -> bool:
        [row] = scene.query(QUEUES_SQL)
        left[:] = [str(dict(row))]
        return not any(row.values())

    try:
        await scene.recover()
        await scene.until(is_idle, "all queues to be empty", REST_SECONDS_MAX)
    except AssertionError as error:
        return [Violation("I5", f"the cluster does not come to rest: {error} {' '.join(left)}")]
    return []


async def look_as_client(scene: Scene, evidence: Evidence) -> None:
    """Take down what every client may see: through the load balancer, and of each node."""
    async with Client(scene.url, scene.ledger) as client:
        evidence.reads = await read_all(scene, client)
        evidence.viewed = await read_all(scene, client, through_view, "HEAD")
        await follow_to_end(client)
    async with open_session() as session:
        evidence.listed = await list_all(scene, session)
    answers = await asyncio.gather(*(ask_node(node.url, scene.ledger, scene.tokens) for node in scene.nodes))
    evidence.answers = dict(zip((node.id for node in scene.nodes), answers, strict=True))


async def read_all(
    scene: Scene, client: Client, way: Callable[[str], str] = str, method: str = "GET"
) -> dict[str, Read]:
    """Read every path, by some ``way`` to it, as often as a client would that is told to come again."""
    deadline = time.monotonic() + READ_SECONDS_MAX

    async def look(path: str) -> tuple[str, Read]:
        while True:
            code, version = await client.read(path, way(path), method=method, counted=False)
            if code in (200, 404) or time.monotonic() > deadline:
                return path, Read(code, version)
            await asyncio.sleep(1)

    return dict(await side_by_side(map(look, scene.ledger.paths)))


async def list_all(scene: Scene, session: aiohttp.ClientSession) -> dict[str, Read]:
    """Return every artifact that the listings of the load's folders name, with the digest its info shows."""
    base = f"{scene.url}/artifactory/api/storage"

    async def list_folder(folder: str) -> list[str]:
        children = (await get_json(session, f"{base}/{folder}")).get("children", [])
        return [folder + child["uri"] for child in children if not child["folder"]]

    async def look(path: str) -> tuple[str, Read]:
        info = await get_json(session, f"{base}/{path}")
        return path, Read(200, info["checksums"]["sha256"], int(info["size"]))

    listings = await side_by_side(map(list_folder, {path.rpartition("/")[0] for path in scene.ledger.paths}))
    return dict(await side_by_side(look(path) for paths in listings for path in paths))


async def side_by_side(works: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, some of them at once."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def wait(work: Awaitable[T]) -> T:
        async with turn:
            return await work

    return await asyncio.gather(*map(wait, works))


async def get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    for _ in range(30):
        async with session.get(url) as response:
            if response.status in (200, 404):
                found: dict[str, Any] = await response.json(content_type=None)
                return found
        await asyncio.sleep(1)
    raise AssertionError(f"{url} does not answer")


def check_until_clean(scene: Scene) -> list[Pass]:
    """Compare shards and rows until nothing is found twice in a row; strays are young at first."""
    passes: list[Pass] = []
    deadline = time.monotonic() + 3 * UPLOAD_SECONDS_MAX + REST_SECONDS_MAX
    while time.monotonic() < deadline:
        passes.append(check_once(scene))
        if len(passes) > 1 and not any(one.found or one.waiting for one in passes[-2:]):
            return passes
        time.sleep(CHECK_PAUSE_SECONDS)
    return passes


def check_once(scene: Scene) -> Pass:
    """Order a check of every shard, as ``holdfast fsck --repair`` does, and wait for it."""
    base = f"{scene.url}/artifactory/api/holdfast/fsck"
    order = json.loads(curl("-X", "POST", "-d", '{"repair": true}', base, fail=True)[1])
    for _ in range(CHECKS_MAX):
        time.sleep(1)
        rows = json.loads(curl(f"{base}/{order['request']}", fail=True)[1])["checks"]
        if all(row["finished_at"] for row in rows):
            break
    else:
        raise AssertionError(f"checks do not end: {rows}")
    acted = [
        f"{row['shard']} {one['finding']} {one['what']}" for row in rows for one in row["report"].get("examples", [])
    ]
    counts = [count for row in rows for count in row["report"].get("findings", {}).values()]
    return Pass(frozenset(acted), sum(count["found"] for count in counts), sum(count["waiting"] for count in counts))


def look_at_store(scene: Scene, evidence: Evidence) -> None:
    """Take down rows and files."""
    evidence.blobs = [BlobRow(**row) for row in scene.query(BLOBS_SQL)]
    evidence.replicas = [ReplicaRow(**row) for row in scene.query(REPLICAS_SQL)]
    evidence.on_lists = frozenset(row[0] for row in scene.query(LISTED_SQL))
    evidence.files = [
        found(shard, path) for node in scene.nodes for shard in node.shards for path in entries(shard) if path.is_file()
    ]
    counted = status(scene.cluster.live)
    evidence.totals = {key: counted["blobs"][key] for key in ("count", "bytes")}
    evidence.sums = {"count": len(evidence.blobs), "bytes": sum(blob.size for blob in evidence.blobs)}


def entries(shard: Path) -> list[Path]:
    return [*shard.glob("blobs/*/*"), *shard.glob("tmp/*")]


def found(shard: Path, path: Path) -> FileFound:
    data = path.read_bytes()
    directory = path.relative_to(shard).parts[0]
    return FileFound(str(shard), directory, path.name, len(data), hashlib.sha256(data).hexdigest())


def is_consistent(evidence: Evidence) -> bool:
    """Say whether rows and files are of one moment."""
    files = {file.name.partition(".")[2] for file in evidence.files if file.directory == "blobs"}
    rows = {row.generation for row in evidence.replicas}
    return files == rows and not evidence.on_lists and evidence.totals == evidence.sums


def look_at_rest(scene: Scene, evidence: Evidence) -> None:
    """Take down events, epochs, holds, and secrets in logs."""
    evidence.terms = [Term(**row) for row in scene.query(TERMS_SQL)]
    evidence.epoch = int(scene.query("SELECT epoch FROM lease")[0][0])
    shards = [shard for node in scene.nodes for shard in node.shards]
    evidence.epochs_on_disk = {str(shard): int((shard / "epoch").read_text()) for shard in shards}
    evidence.events = [EventRow(**{**row, "detail": json.loads(row["detail"])}) for row in scene.query(AUDIT_SQL)]
    evidence.usage = {row["key"]: (row["counted"], row["summed"]) for row in scene.query(USAGE_SQL)}
    evidence.holds = [
        f"{row[0]}: {row[1]}" for row in scene.query("SELECT reason, detail FROM holds WHERE released_at IS NULL")
    ]
    evidence.secrets = find_secrets(scene)


def find_secrets(scene: Scene) -> list[str]:
    """Return which secrets stand in which node's log; passwords of tests and tokens are known by their form."""
    watch = Watch()
    watch.keep("the cluster key", scene.cluster.key_file.read_text().strip())
    watch.keep("the database's password", urlsplit(scene.pair.primary.dsn).password or MARK)
    for node in scene.nodes:
        watch.look(f"the log of {node.id}", node.log.read_text(errors="replace"))
    return watch.take()
