from __future__ import annotations

import subprocess
import sys

import click
import pytest

from repo_node.cli import COMMANDS, main
from tests.repo_node.cli.conftest import Holdfast

HEAVY = ("aiohttp", "pydantic", "rich", "asyncpg")
TEACHING = [
    *[(name,) for name in COMMANDS if name not in ("up", "down")],
    *[("settings", name) for name in ("list", "get", "set")],
    *[("token", name) for name in ("create", "list", "revoke")],
    *[("user", name) for name in ("create", "list", "show", "change", "delete", "unlock", "password")],
    *[("group", name) for name in ("create", "list", "show", "add", "remove", "delete")],
    *[("permission", name) for name in ("set", "list", "show", "delete")],
]


def test_help_imports_nothing_heavy() -> None:
    script = f"""
import sys
from repo_node.cli import main
main(["--help"], standalone_mode=False)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command(nowhere: Holdfast) -> None:
    result = nowhere("--help")
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert entry.summary.split()[0] in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    assert command.name == name


@pytest.mark.parametrize("command", TEACHING, ids="-".join)
def test_help_of_a_command_teaches_with_an_example(nowhere: Holdfast, command: tuple[str, ...]) -> None:
    result = nowhere(*command, "--help")
    assert result.exit_code == 0
    assert f"  holdfast {command[0]}" in result.stdout or f" holdfast {' '.join(command)}" in result.stdout
    assert "Example" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_an_unknown_command_is_wrong_usage(nowhere: Holdfast) -> None:
    result = nowhere("uplaod")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_the_module_runs_the_same_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "repo_node", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("holdfast, version ")
