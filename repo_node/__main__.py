"""``python -m repo_node`` is ``holdfast``."""

from __future__ import annotations

from repo_node.cli import main

if __name__ == "__main__":
    main(prog_name="holdfast")
