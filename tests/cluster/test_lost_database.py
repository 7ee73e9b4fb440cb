"""The database is lost: a backup brings every artifact of its moment back, a rebuild finds what came later."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import PASSWORD, Cluster, curl, until


def holdfast(*arguments: str, environment: dict[str, str]) -> Any:
    """Run a command of the command line and return the JSON it prints."""
    command = [sys.executable, "-m", "repo_node", *arguments, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    assert result.returncode == 0, result.stderr + result.stdout
    return json.loads(result.stdout)


def move_to(cluster: Cluster, dsn: str) -> None:
    """Let every node use another database from its next start on."""
    for node in cluster.nodes:
        node.config.write_text(node.config.read_text().replace(cluster.dsn, dsn))
    cluster.dsn = dsn


async def test_lost_database_is_restored_and_rebuilt(three: Cluster, empty_dsn: str, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup")
    later = b"came after the backup"
    async with LedgerClient([three.url], retries=2) as client:
        for number in range(20):
            assert await client.put(f"generic-local/before/{number}", b"%d" % number * 1000)
        described = holdfast("backup", backup, environment={"HOLDFAST_DSN": three.dsn})
        assert described["rows"]["blobs"] == 20
        acknowledged = dict(client.ledger.acknowledged)
        assert await client.put("generic-local/after", later)
        assert await client.put("generic-local/known", b"0" * 1000)

        three.stop()
        holdfast("restore", backup, environment={"HOLDFAST_DSN": empty_dsn})
        move_to(three, empty_dsn)
        three.start()
        client.ledger.acknowledged = acknowledged
        await client.verify()
        assert client.ledger.wrong == []
        # A path that came after the backup is unknown now, and said to be.
        assert curl(f"{three.url}/artifactory/generic-local/after")[0] == 404

        user = {"HOLDFAST_USER": "admin", "HOLDFAST_PASSWORD": PASSWORD}
        rebuilt = holdfast("rebuild", "--url", three.nodes[0].url, environment=user)
        found = [
            example["what"]
            for check in rebuilt["checks"]
            for example in check["report"]["examples"]
            if example["finding"] == "found"
        ]
        sha256 = hashlib.sha256(later).hexdigest()
        assert {what.partition(".")[0] for what in found} == {sha256}
        assert three.query("SELECT count(*) FROM blobs")[0][0] == 21
        copies = "SELECT count(*) FROM replicas r JOIN blobs b ON b.id = r.blob_id WHERE b.sha256 = $1"
        assert three.query(copies, bytes.fromhex(sha256))[0][0] == 2
        assert three.query("SELECT deletions_held()")[0][0], "until an operator releases them"
        # Uploading it again brings its path back without writing its bytes anew.
        assert await client.put("generic-local/after", later)
        await client.verify()
        assert client.ledger.wrong == []
    short = "SELECT count(*) FROM blobs b WHERE (SELECT count(*) FROM good_replicas(b.id)) < b.redundancy"
    await until(lambda: three.query(short)[0][0] == 0, "every copy to be there", 30)
