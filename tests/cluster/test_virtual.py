"""A virtual repository while nodes die."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, curl, until

LOADERS = 4
PAUSE_SECONDS = 0.05
SIZES = (10, 4_000, 4_000, 2_000_000)


def make(cluster: Cluster, key: str, **configuration: object) -> None:
    url = f"{cluster.live.url}/artifactory/api/repositories/{key}"
    curl("-X", "PUT", "-d", json.dumps(configuration), url, fail=True)


async def test_a_virtual_repository_serves_and_takes_through_the_death_of_any_node(three: Cluster) -> None:
    """Whoever repeats what fails gets everything, the newest version of it, from whichever member has it."""
    make(three, "first")
    make(three, "second")
    make(three, "all", rclass="virtual", repositories=["first", "second"], defaultDeploymentRepo="second")
    done = asyncio.Event()
    async with LedgerClient([three.url], retries=2) as client:

        async def put(repository: str, path: str, body: bytes) -> bool:
            """Deploy to a repository what is then read through the virtual one."""
            is_done = await client.put(f"{repository}/{path}", body)
            client.ledger.acknowledged.pop(f"{repository}/{path}", None)
            client.ledger.acknowledged[f"all/{path}"] = hashlib.sha256(body).hexdigest()
            return is_done

        async def load(loader: int) -> list[bool]:
            chosen, answers = random.Random(loader), []
            while not done.is_set():
                path, body = f"load/{loader}-{len(answers)}", chosen.randbytes(chosen.choice(SIZES))
                answers.append(await put(chosen.choice(("all", "first")), path, body))
                answers.append(await client.get(f"all/{path}"))
                if chosen.random() < 0.3:
                    # It lies in the second repository, or nowhere yet: what the first one has is seen from now on.
                    answers.append(await put("first", path, chosen.randbytes(100)))
                    answers.append(await client.get(f"all/{path}"))
                answers.append(await client.get(chosen.choice(sorted(client.ledger.acknowledged))))
                await asyncio.sleep(PAUSE_SECONDS)
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
        await client.verify()
        assert client.ledger.wrong == []
        held = three.query("SELECT DISTINCT r.key FROM artifacts a JOIN repositories r ON r.id = a.repo_id ORDER BY 1")
        assert [row["key"] for row in held] == ["first", "second"]
