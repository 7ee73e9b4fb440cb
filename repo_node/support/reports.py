"""What one node reports for a support bundle: files that each of its processes makes, put together by one of them."""

from __future__ import annotations

import asyncio
import platform
import sys
from dataclasses import replace
from importlib import metadata
from typing import Any

from repo_node import __version__, logs
from repo_node.config import NodeConfig
from repo_node.db.errors import CatalogueError
from repo_node.node import Node
from repo_node.support import stacks
from repo_node.support.packing import BadReport, pack, unpack
from repo_node.support.redaction import Redaction, secrets_of, shown_configuration
from repo_node.support.wish import Wish
from repo_node.workers.siblings import Siblings, SiblingSilent

REPORT_PATH = "/report"
"""Of the internal listener, and of the siblings', where it gives a process' own part."""

SIBLING_SECONDS = 10.0
LIBRARIES = ("aiohttp", "asyncpg", "uvloop", "pydantic", "prometheus-client", "xxhash", "argon2-cffi")


class NodeReports:
    """Makes the reports of one process, and of its node. ``node`` is set when there is one."""

    def __init__(self, config: NodeConfig, process: int, siblings: Siblings | None) -> None:
        self._config = config
        self._process = process
        self._siblings = siblings
        self.redaction = Redaction(secrets_of(config))
        self.node: Node | None = None

    async def whole(self, wish: Wish) -> bytes:
        """Return the packed report of the node: a process that does not answer is said, and no error."""
        workers = self._config.node.workers
        part = replace(wish, log_bytes_max=wish.log_bytes_max // workers)
        others = [number for number in range(workers) if number != self._process]
        files, node, *found = await asyncio.gather(
            self._own_files(part), self._node_files(wish), *(self._ask(other, part) for other in others)
        )
        files |= node
        for other in found:
            files |= other
        return await asyncio.to_thread(pack, files)

    async def own(self, wish: Wish) -> bytes:
        """Return the packed part of this process."""
        files = await self._own_files(wish)
        return await asyncio.to_thread(pack, files)

    async def _ask(self, process: int, wish: Wish) -> dict[str, str]:
        assert self._siblings is not None
        query = "&".join(f"{name}={value}" for name, value in wish.to_query().items())
        try:
            packed = await self._siblings.get(process, f"{REPORT_PATH}?{query}", SIBLING_SECONDS)
            return await asyncio.to_thread(unpack, packed)
        except (SiblingSilent, BadReport) as error:
            return {f"process-{process}/error.txt": f"{self.redaction.clean(str(error))}\n"}

    async def _own_files(self, wish: Wish) -> dict[str, str]:
        prefix, files = f"process-{self._process}", {}
        for number in range(wish.dumps):
            if number:
                await asyncio.sleep(wish.interval_milliseconds / 1000)
            files[f"{prefix}/stacks-{number + 1}.txt"] = await stacks.dump()
        if wish.logs:
            files[f"{prefix}/log.txt"] = await asyncio.to_thread(self._log, wish)
        return files

    def _log(self, wish: Wish) -> str:
        """Return the newest lines, without secrets. Blocking: for a thread."""
        text = "".join([f"{line}\n" for line in logs.kept_lines(wish.since, wish.until)])
        if len(text) > wish.log_bytes_max:
            text = text[text.find("\n", len(text) - wish.log_bytes_max) + 1 :]
        return self.redaction.clean(text)

    async def _node_files(self, wish: Wish) -> dict[str, str]:
        files = {}
        if wish.configuration:
            files["configuration.json"] = self.redaction.to_text(shown_configuration(self._config))
        if wish.system:
            files["system.json"] = self.redaction.to_text(self._describe())
            files["metrics.txt"] = self.redaction.clean(await self._metrics())
        return files

    async def _metrics(self) -> str:
        if self.node is None:
            return "the node is starting\n"
        try:
            return (await self.node.exposition()).decode()
        except CatalogueError as error:
            return f"{error}\n"

    def _describe(self) -> dict[str, Any]:
        """Return facts about the process and its node: named one by one, so that none is a secret."""
        facts: dict[str, Any] = {
            "node": self._config.node.id,
            "zone": self._config.node.zone,
            "process": self._process,
            "holdfast": __version__,
            "python": sys.version,
            "system": platform.platform(),
            "libraries": {name: version_of(name) for name in LIBRARIES},
        }
        if self.node is not None:
            size, idle = self.node.database.connections
            facts |= {
                "ready": self.node.is_ready(),
                "fresh": self.node.is_fresh,
                "leaving": self.node.is_leaving,
                "in_flight": self.node.in_flight,
                "database_connections": size,
                "database_connections_idle": idle,
                "suspicions": [list(one) for one in self.node.suspicions()],
                "deletion_holds": list(self.node.deletion_holds()),
            }
        return facts


def version_of(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
