"""``python -m repo_node.workers PID`` is what a node's main process starts its workers with."""

from __future__ import annotations

import sys

from repo_node.workers.worker import run

if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1])))
