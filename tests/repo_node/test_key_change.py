"""The cluster's key is changed node by node, while they all work: S12."""

from __future__ import annotations

from pathlib import Path

from repo_node.config import NodeConfig
from tests.canaries import WATCH
from tests.repo_node.nodes import CLUSTER_KEY, configure, new_path, random_bytes, run_nodes

NEW_KEY = CLUSTER_KEY[::-1]


def test_s12_nodes_work_together_while_one_has_the_new_key_and_the_other_the_old_one(
    ready_dsn: str, directory: Path
) -> None:
    WATCH.keep("the new cluster key", NEW_KEY.hex())

    def having(number: int, key: bytes, *accepted: bytes) -> NodeConfig:
        config = configure(ready_dsn, directory, name=f"node-{number}", zone=f"zone-{number}", shards=1)
        return config.model_copy(update={"cluster_key": key, "accepted_keys": accepted})

    with run_nodes([having(1, NEW_KEY, CLUSTER_KEY), having(2, CLUSTER_KEY, NEW_KEY)]) as cluster:
        for node in cluster.nodes:
            path, body = new_path(), random_bytes(2 << 20)
            assert node.admin.put(path, body).status == 201, "both shards are needed"
            assert [other.admin.get(path).body for other in cluster.nodes] == [body] * 2
