"""A virtual repository while nodes die."""

from __future__ import annotations

import asyncio
import json
import random

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, curl, until

LOADERS = 6


def make(cluster: Cluster, key: str, **configuration: object) -> None:
    url = f"{cluster.live.url}/artifactory/api/repositories/{key}"
    curl("-X", "PUT", "-d", json.dumps(configuration), url, fail=True)


async def test_a_virtual_repository_serves_and_takes_through_the_death_of_any_node(three: Cluster) -> None:
    make(three, "first")
    make(three, "second")
    make(three, "all", rclass="virtual", repositories=["first", "second"], defaultDeploymentRepo="second")
    done = asyncio.Event()
    async with LedgerClient([three.url], retries=2) as client:

        async def load(loader: int) -> list[bool]:
            chosen, answers = random.Random(loader), []
            while not done.is_set():
                path = f"all/load/{loader}-{len(answers)}"
                answers.append(await client.put(path, chosen.randbytes(chosen.choice((10, 4_000, 2_000_000)))))
                answers.append(await client.get(chosen.choice(sorted(client.ledger.acknowledged))))
            return answers

        loaders = [asyncio.create_task(load(number)) for number in range(LOADERS)]
        for node in three.nodes:
            await asyncio.sleep(0.5)
            node.kill()
            await asyncio.sleep(1.5)
            node.start()
            await until(three.is_whole, "the nodes to know one another again", 60)
        done.set()
        answers = [answer for one in await asyncio.gather(*loaders) for answer in one]
        assert len(answers) > 60 and all(answers), client.ledger.failures
        assert client.ledger.wrong == []
        held = three.query("SELECT DISTINCT r.key FROM artifacts a JOIN repositories r ON r.id = a.repo_id")
        assert [row["key"] for row in held] == ["second"]
