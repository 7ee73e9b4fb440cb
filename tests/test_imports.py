"""Imports run one way: sharding knows nothing of the node, and only repo_node/db speaks SQL."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each place may not import, by prefix.
FORBIDDEN = {
    "sharding": ("repo_node", "asyncpg", "aiohttp.web", "prometheus_client", "pydantic", "click"),
    "repo_node/db": ("repo_node.web", "repo_node.api", "repo_node.artifacts", "repo_node.cli", "aiohttp"),
    "repo_node/auth": ("repo_node.web", "repo_node.api", "repo_node.artifacts", "aiohttp"),
    "repo_node/cluster": ("repo_node.web", "repo_node.api", "repo_node.artifacts", "aiohttp"),
    "repo_node/web": ("repo_node.api", "repo_node.app", "repo_node.cli"),
    "repo_node/api": ("repo_node.app", "repo_node.cli", "repo_node.launch", "asyncpg"),
    "repo_node/client": ("repo_node.db", "repo_node.web", "repo_node.api", "repo_node.app", "click", "rich"),
}
SQL_WORDS = ("SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ")
SPEAKS_SQL = ("repo_node/db/",)


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_imports_run_one_way(place: str) -> None:
    files = list((ROOT / place).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in FORBIDDEN[place])
    ]
    assert found == []


def test_no_sql_outside_the_database_package() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in [*(ROOT / "repo_node").rglob("*.py"), *(ROOT / "sharding").rglob("*.py")]
        if not str(file.relative_to(ROOT)).startswith(SPEAKS_SQL)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lstrip().startswith(SQL_WORDS)
    ]
    assert found == []
