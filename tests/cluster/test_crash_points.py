"""A node that dies at a chosen step of an upload: what is there afterwards is the old version or the whole new one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sharding.crash_points import ALLOWED, AT
from tests.cluster.processes import Cluster, NodeProcess, curl, is_ready, until

OLD, NEW = b"old" * 10_000, b"new" * 10_000
STEPS = {"upload.renamed": OLD, "upload.durable": OLD, "upload.committed": NEW}
"""And what is at the path when the node has died there."""


async def test_death_at_a_step_of_an_upload_leaves_one_whole_version_and_no_rest(two: Cluster, tmp_path: Path) -> None:
    other, node = two.nodes
    for step, left in STEPS.items():
        path = f"generic-local/{step}"
        assert put(other, path, OLD, tmp_path) == 201
        await restart(node, {AT: step, ALLOWED: "1"})
        await until(two.is_whole, "the nodes to know one another", 30)
        assert put(node, path, NEW, tmp_path) == 0, "no answer came"
        assert node.process is not None
        assert node.process.wait(10) == -9
        assert curl(f"{other.url}/artifactory/{path}") == (200, left)
        await restart(node, {})
        await until(two.is_whole, "the nodes to know one another again", 30)
        assert curl(f"{node.url}/artifactory/{path}") == (200, left)
        assert put(node, path, NEW, tmp_path) == 201, "the same again goes well"
        assert curl(f"{other.url}/artifactory/{path}") == (200, NEW)
        await until(partial(has_no_rest, two), "staged files to vanish", 10)


async def test_node_that_is_to_die_does_not_start_unless_it_may(two: Cluster) -> None:
    node = two.nodes[0]
    node.kill()
    node.extra_environment = {AT: "upload.staged"}
    node.start()
    assert node.process is not None
    assert node.process.wait(30) == 1
    assert "only tests set it" in node.log.read_text()


def put(node: NodeProcess, path: str, body: bytes, directory: Path) -> int:
    source = directory / "body"
    source.write_bytes(body)
    return curl("-H", "Expect:", "-T", str(source), f"{node.url}/artifactory/{path}")[0]


async def restart(node: NodeProcess, environment: dict[str, str]) -> None:
    node.kill()
    node.extra_environment = environment
    node.start()
    await until(lambda: is_ready(node), "the node to be ready", 60)


def has_no_rest(made: Cluster) -> bool:
    return not any(node.staged_files() for node in made.nodes)
