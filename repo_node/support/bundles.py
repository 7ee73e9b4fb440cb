"""Support bundles: made by the node that was asked, from what all living nodes report, and kept in Postgres.

In Postgres, because any node has to be able to give one, the node that made it may be gone, and the shards may be what
is wrong. Without Postgres there is nothing to ask by anyway: no user can be proved.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import aiohttp
from yarl import URL

from repo_node import __version__
from repo_node.db import inspection
from repo_node.db import settings as setting_rows
from repo_node.db import support_bundles as rows
from repo_node.db.errors import CatalogueError, OutcomeUnknown
from repo_node.db.nodes import ClusterRows, NodeRow
from repo_node.db.pool import Database
from repo_node.db.support_bundles import BundleRow
from repo_node.errors import NotFound, RequestError
from repo_node.origin import Origin
from repo_node.outcome import until_known
from repo_node.settings import LiveSettings
from repo_node.support.packing import BadReport, Packer
from repo_node.support.redaction import shown_settings
from repo_node.support.reports import REPORT_PATH, NodeReports
from repo_node.support.wish import Wish
from sharding import wire
from sharding.background import Background
from sharding.model import NodeId
from sharding.peer import Peer
from sharding.upgrade import read_body

log = logging.getLogger("holdfast.support")

PART_BYTES = 1 << 20
REPORT_BYTES_MAX = 64 << 20
"""Of a node's packed report."""

ENDING_SECONDS = 10.0
"""Beyond the time that a bundle may take, for noting how it ended."""


class StillMade(RequestError):
    """The bundle is not ready, or another one is being made."""

    status = 409


class Unwanted(Exception):
    """The bundle was deleted while it was being made."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """A bundle that somebody asked for."""

    id: str
    name: str
    description: str
    wish: Wish


class SupportBundles:
    """Makes bundles, one at a time in the whole cluster, and gives what is kept."""

    def __init__(
        self,
        node: NodeId,
        database: Database,
        reports: NodeReports,
        cluster: Callable[[], ClusterRows],
        peer_at: Callable[[NodeId, str], Peer],
        settings: LiveSettings,
    ) -> None:
        self._node = node
        self._database = database
        self._reports = reports
        self._cluster = cluster
        self._peer_at = peer_at
        self._settings = settings
        self._work = Background(1)

    @property
    def cluster_id(self) -> UUID:
        return self._cluster().cluster_id

    async def order(self, name: str, description: str, wish: Wish, *, by: Origin) -> str:
        """Begin a bundle, and return its id: it is made after that. Raises ``StillMade``."""
        now = datetime.now(UTC)
        ordered = Ordered(f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}", name, description, wish)
        seconds = self._settings.now.support_bundle_seconds_max + ENDING_SECONDS
        begin = partial(rows.begin, self._database, ordered.id, name, description, self._node, seconds, by=by)
        begun = await until_known(begin, wait_seconds=self._settings.now.outcome_wait_seconds)
        if not begun.result:
            raise StillMade("Another support bundle is being made; wait for it.")
        if not self._work.start(self._make(ordered)):
            await self._end(ordered, rows.FAILED, "this node is at another one, or leaving", 0)
            raise StillMade("This node cannot make a support bundle now; retry.")
        return ordered.id

    async def list_all(self) -> list[BundleRow]:
        return await rows.list_all(self._database)

    async def get(self, bundle: str) -> BundleRow:
        """Raises ``NotFound``."""
        found = await rows.find(self._database, bundle)
        if found is None:
            raise NotFound(f"There is no support bundle {bundle}.")
        return found

    async def get_ready(self, bundle: str) -> BundleRow:
        """Return a bundle that can be read. Raises ``NotFound``, ``StillMade``."""
        found = await self.get(bundle)
        if found.state == rows.IN_PROGRESS:
            raise StillMade(f"The support bundle {bundle} is being made: {found.doing}.")
        if found.state != rows.SUCCESS:
            raise NotFound(f"The support bundle {bundle} could not be made: {found.doing}.")
        return found

    async def read(self, bundle: BundleRow) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a bundle. Raises ``NotFound`` when it is let go of meanwhile."""
        for position in range(-(-bundle.bytes // PART_BYTES)):
            part = await rows.read_part(self._database, bundle.id, position)
            if part is None:
                raise NotFound(f"There is no support bundle {bundle.id} any more.")
            yield part

    async def delete(self, bundle: str, *, by: Origin) -> None:
        """Let go of a bundle. Raises ``NotFound``."""
        if not await rows.delete(self._database, bundle, by=by):
            raise NotFound(f"There is no support bundle {bundle}.")

    async def close(self) -> None:
        await self._work.close(0)

    async def _make(self, ordered: Ordered) -> None:
        state, doing, count_bytes = rows.FAILED, "an unexpected failure; the log of its node has it", 0
        try:
            async with asyncio.timeout(self._settings.now.support_bundle_seconds_max):
                packed = await self._collect(ordered)
                await self._keep(ordered, packed)
                await self._tell(ordered, 1, 1, "")
            state, doing, count_bytes = rows.SUCCESS, "", len(packed)
        except TimeoutError:
            doing = "it took longer than support_bundle_seconds_max"
        except Unwanted:
            doing = "it was deleted"
        except CatalogueError as error:
            doing = str(error)
        except asyncio.CancelledError:
            doing = f"{self._node} stopped"
            raise
        finally:
            # Whoever is stopped here leaves a row that counts as failed after its time.
            await self._end(ordered, state, doing, count_bytes)
        log.info("a support bundle was made", extra={"facts": {"bundle": ordered.id, "state": state, "cause": doing}})

    async def _end(self, ordered: Ordered, state: str, doing: str, count_bytes: int) -> None:
        kept = self._settings.now.support_bundles_kept
        end = partial(rows.end, self._database, ordered.id, state, doing, count_bytes, kept=kept)
        with suppress(CatalogueError):
            await until_known(end, wait_seconds=ENDING_SECONDS)

    async def _keep(self, ordered: Ordered, packed: memoryview) -> None:
        for position, start in enumerate(range(0, len(packed), PART_BYTES)):
            part = bytes(packed[start : start + PART_BYTES])
            add = partial(rows.add_part, self._database, ordered.id, position, part)
            await until_known(add, wait_seconds=self._settings.now.outcome_wait_seconds)

    async def _collect(self, ordered: Ordered) -> memoryview:
        """Return the whole bundle: first what Postgres knows, then what each node reports, one after another."""
        packer = Packer(self._settings.now.support_bundle_bytes_max)
        nodes = sorted(self._cluster().nodes.values(), key=lambda one: one.id)
        outcomes: dict[str, str] = {}
        await self._tell(ordered, 0, len(nodes), "asking Postgres")
        if ordered.wish.configuration or ordered.wish.system:
            files = await self._cluster_files(ordered.wish)
            for name, text in files.items():
                await asyncio.to_thread(packer.add, name, text)
        for number, node in enumerate(nodes):
            await self._tell(ordered, number, len(nodes), f"asking {node.id}")
            outcomes[node.id] = await self._add_report(packer, node, ordered.wish)
        about = await asyncio.to_thread(self._about, ordered, outcomes)
        await asyncio.to_thread(packer.add, "bundle.json", about)
        return await asyncio.to_thread(packer.close)

    async def _tell(self, ordered: Ordered, done: int, total: int, doing: str) -> None:
        """Say how far a bundle is. Raises ``Unwanted``."""
        with suppress(OutcomeUnknown):
            if not await rows.tell_progress(self._database, ordered.id, done, total, doing):
                raise Unwanted

    async def _add_report(self, packer: Packer, node: NodeRow, wish: Wish) -> str:
        """Add what a node reports, and return how that went: a node without an answer is no error."""
        if node.id != self._node and not node.up:
            return f"down: no heartbeat for {node.heartbeat_age_seconds:.0f} s"
        seconds = self._settings.now.support_node_seconds_max + wish.dumps * wish.interval_milliseconds / 1000
        try:
            async with asyncio.timeout(seconds):
                packed = await (self._reports.whole(wish) if node.id == self._node else self._ask(node, wish))
            return await asyncio.to_thread(packer.take, f"nodes/{node.id}", packed) or "reported"
        except TimeoutError:
            return f"no report within {seconds:g} s"
        except (aiohttp.ClientError, OSError, BadReport) as error:
            return f"no report: {self._reports.redaction.clean(str(error) or type(error).__name__)}"

    async def _ask(self, node: NodeRow, wish: Wish) -> bytes:
        peer = self._peer_at(node.id, node.internal_url)
        url = URL(f"{peer.url}{wire.PREFIX}{REPORT_PATH}").with_query(wish.to_query())
        async with peer.session.get(
            url,
            headers=peer.all_headers(),
            allow_redirects=False,
            server_hostname=peer.node,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=None),
        ) as response:
            body = await read_body(response, REPORT_BYTES_MAX)
        if response.status != 200:
            raise BadReport(f"the node answered {response.status}: its release may know of no reports")
        return body

    async def _cluster_files(self, wish: Wish) -> dict[str, str]:
        """Return what Postgres tells, a file for each subject; what it cannot tell is said."""
        found: dict[str, Any] = {}
        if wish.configuration:
            found["settings"] = shown_settings(await setting_rows.read(self._database))
        for name, statement in inspection.CLUSTER.items():
            found[name] = await self._inspect(inspection.inspect(self._database, statement))
        postgres: dict[str, Any] = {}
        if wish.system:
            for name, statement in inspection.POSTGRES.items():
                postgres[name] = await self._inspect(inspection.inspect(self._database, statement))
            postgres["activity"] = await self._inspect(inspection.activity(self._database))
        documents = {"cluster": found, "postgres": postgres}
        return await asyncio.to_thread(self._texts_of, documents)

    async def _inspect(self, look: Any) -> Any:
        try:
            return await look
        except CatalogueError as error:
            return {"error": str(error)}

    def _texts_of(self, documents: dict[str, dict[str, Any]]) -> dict[str, str]:
        return {
            f"{folder}/{name}.json": self._reports.redaction.to_text(document)
            for folder, subjects in documents.items()
            for name, document in subjects.items()
        }

    def _about(self, ordered: Ordered, outcomes: dict[str, str]) -> str:
        return self._reports.redaction.to_text(
            {
                "id": ordered.id,
                "name": ordered.name,
                "description": ordered.description,
                "made_by": self._node,
                "made_at": datetime.now(UTC),
                "holdfast": __version__,
                "cluster_id": self._cluster().cluster_id,
                "asked_for": ordered.wish.to_query(),
                "nodes": outcomes,
            }
        )
