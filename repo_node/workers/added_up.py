"""The metrics of all processes of a node, added up by its main process."""

from __future__ import annotations

import asyncio
from collections import Counter

from prometheus_client import CollectorRegistry

from repo_node.metrics.figures import AddedUp, Figures, render, unpack
from repo_node.workers.exchange import FIGURES_PATH
from repo_node.workers.siblings import Siblings, SiblingSilent

ASK_SECONDS = 2.0


class NodeMetrics:
    """Asks every worker for its figures whenever they are read, and keeps those of workers that have ended.

    Only what is kept here is ever shown, so that the end of a worker takes nothing back.
    """

    def __init__(self, registry: CollectorRegistry, siblings: Siblings, workers: int) -> None:
        self._registry = registry
        self._siblings = siblings
        self._workers = range(1, workers)
        self._last: dict[int, Figures] = {}
        self._past = Figures()
        self._ends: Counter[int] = Counter()

    async def render(self) -> bytes:
        """Return the node's metrics. A worker that does not answer counts as it last did."""
        await asyncio.gather(*map(self._ask, self._workers))
        others = Figures()
        for one in (self._past, *self._last.values()):
            others.add(one)
        return await render(AddedUp(self._registry, others))

    def keep(self, process: int) -> None:
        """Keep what a worker had counted: it has ended."""
        self._ends[process] += 1
        last = self._last.pop(process, None)
        if last is not None:
            self._past.add(Figures(counted=last.counted))

    async def _ask(self, process: int) -> None:
        ends = self._ends[process]
        try:
            told = unpack(await self._siblings.get(process, FIGURES_PATH, ASK_SECONDS))
        except (SiblingSilent, ValueError, TypeError):
            return
        if ends == self._ends[process]:
            self._last[process] = told
