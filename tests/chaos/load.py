"""The load: workers, each of which does one thing after the other, in places of its own.

A request that fails is tried once more, as a client would. Some clients are odd: they send a PUT twice at once, or
leave in the middle of a body.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

from tests.chaos.accounts import Accounts
from tests.chaos.client import Client
from tests.chaos.files import Files
from tests.chaos.following import follow
from tests.chaos.ledger import Ledger
from tests.chaos.places import BUILDER
from tests.chaos.reading import Reading
from tests.chaos.trees import Trees

SHARED_BODIES = 16
LIVE_PATHS_MAX = 40

Doing = Callable[[], Awaitable[object]]


class Load:
    """Some workers against one URL, with the tokens of users by their names."""

    def __init__(
        self,
        url: str,
        ledger: Ledger,
        seed: int,
        *,
        workers: int,
        pause_seconds: float,
        tokens: Mapping[str, str],
    ) -> None:
        self.admin = Client(url, ledger)
        self.builder = Client(url, ledger, tokens[BUILDER], name=BUILDER)
        shared = [random.Random(f"{seed}/{number}").randbytes(20_000 + number) for number in range(SHARED_BODIES)]
        self._workers = [Worker(self, number, seed, pause_seconds, shared) for number in range(workers)]

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set."""
        async with AsyncExitStack() as stack:
            for client in (self.admin, self.builder):
                await stack.enter_async_context(client)
            await asyncio.gather(follow(self.admin, stop), *(worker.run(stop) for worker in self._workers))


class Worker:
    """One after the other of the deeds that there are, drawn by a seed."""

    def __init__(self, load: Load, number: int, seed: int, pause_seconds: float, shared: list[bytes]) -> None:
        self._random = chance = random.Random(f"{seed}/worker/{number}")
        self._pause_seconds = pause_seconds
        self._files = Files(load.admin, load.builder, number, chance, shared)
        self._trees = Trees(load.admin, load.builder, number, chance)
        self._reading = Reading(load.admin, load.builder, number, chance, shared)
        self._accounts = Accounts(load.admin, number, chance)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            deeds = self._deeds()
            [deed] = self._random.choices([*deeds], [*deeds.values()])
            await deed()
            await asyncio.sleep(self._pause_seconds * self._random.uniform(0.5, 1.5))

    def _deeds(self) -> dict[Doing, int]:
        """Return what may be done, each as often as its number says."""
        files, trees, reading, accounts = self._files, self._trees, self._reading, self._accounts
        is_crowded = files.count >= LIVE_PATHS_MAX
        return {
            files.put_new: 0 if is_crowded else 10,
            files.overwrite: 4,
            files.delete: 15 if is_crowded else 4,
            files.annotate: 5,
            files.transfer: 3,
            files.put_twice: 1,
            files.leave: 1,
            files.trespass: 1,
            trees.make: 0 if trees.count > 3 else 3,
            trees.annotate: 4,
            trees.transfer: 3,
            trees.delete: 1,
            reading.read: 12,
            reading.read_properties: 3,
            reading.search: 6,
            accounts.change: 2,
        }
