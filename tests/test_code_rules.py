"""What the code never does, wherever it would stand: rules of the checklist (docs/security.md) that its text proves."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "repo_node").rglob("*.py"), *(ROOT / "sharding").rglob("*.py")]
BETWEEN_PROCESSES = "repo_node/workers/channel.py"
"""Pickles what a node's own processes say over a pair of sockets that nobody else has: nothing stored, nothing sent."""

SECRET = re.compile(r"(^|_)(secret|password|token|authorization|cluster_key|credentials|mac|signature)s?$")
RUNS_OR_REVIVES = {"pickle", "marshal", "shelve", "dill", "yaml", "jsonpickle", "code", "codeop"}
TEMPLATES = {"jinja2", "mako", "string.Template", "tornado"}
XML = {"xml", "lxml", "defusedxml", "xmltodict", "plistlib"}
LOOKED_AT = (ast.Compare, ast.Import, ast.ImportFrom, ast.Call)
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


@cache
def nodes() -> dict[str, list[ast.AST]]:
    """Return what rules look at in each file; whole trees would slow the garbage collector for all later tests."""
    return {
        str(file.relative_to(ROOT)): [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, LOOKED_AT)
        ]
        for file in FILES
    }


def faults(find: Callable[[ast.AST], bool]) -> set[str]:
    """Return the files that have what ``find`` finds."""
    return {file for file, found in nodes().items() if any(map(find, found))}


def name_of(node: ast.AST) -> str:
    """Return the last name of ``a``, ``a.b`` or ``a.b()``; nothing of anything else."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func):
            return name_of(func)
        case _:
            return ""


def compares_a_secret(node: ast.AST) -> bool:
    """Say whether the time of a comparison may tell how much of a secret was right."""
    if not isinstance(node, ast.Compare) or not any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
        return False
    sides = [node.left, *node.comparators]
    told = any(isinstance(side, ast.Constant) or name_of(side).isupper() for side in sides)
    return not told and any(SECRET.search(name_of(side)) for side in sides)


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def imports(modules: set[str]) -> Callable[[ast.AST], bool]:
    return lambda node: any(name in modules or name.partition(".")[0] in modules for name in imported(node))


def runs_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNS_TEXT


def test_s9_no_secret_is_compared_by_equality() -> None:
    assert faults(compares_a_secret) == set()


@pytest.mark.parametrize("text", ["given == self._token", "secret != found.secret", "a.password() == b", "x == mac"])
def test_s9_a_comparison_of_a_secret_is_seen(text: str) -> None:
    assert compares_a_secret(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("text", ["kind == 'token'", "password is None", "user.password_hash == NO_PASSWORD", "a == b"])
def test_s9_another_comparison_is_none(text: str) -> None:
    assert not compares_a_secret(ast.parse(text, mode="eval").body)


def test_s19_nothing_that_was_stored_or_sent_is_run_revived_or_taken_for_a_template() -> None:
    assert faults(imports(RUNS_OR_REVIVES | TEMPLATES)) == {BETWEEN_PROCESSES}
    assert faults(runs_text) == set()


def test_s20_no_xml_is_read() -> None:
    """What reads some one day does it without entities: then this is the test of that."""
    assert faults(imports(XML)) == set()


@pytest.mark.parametrize(
    "text", ["import pickle", "from xml.etree import ElementTree", "import yaml as y", "from string import Template"]
)
def test_s19_an_import_is_seen_however_it_is_written(text: str) -> None:
    (node,) = ast.parse(text).body
    assert imports(RUNS_OR_REVIVES | TEMPLATES | XML)(node)
    assert not imports(RUNS_OR_REVIVES | TEMPLATES | XML)(ast.parse("import json, re").body[0])
