"""The commands ``up`` and ``down`` with fake nodes: ``python -m tests.launch.driver up ...``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from repo_node.cli import launch
from repo_node.launch import nodes


@click.group()
def main() -> None:
    # Without site packages it starts in a moment.
    nodes.NODE_COMMAND = (sys.executable, "-S", str(Path(__file__).with_name("fake_node.py")), "node")


main.add_command(launch.up)
main.add_command(launch.down)

if __name__ == "__main__":
    main()
