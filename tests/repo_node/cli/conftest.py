"""Fixtures of the command line: a fake node, and a way to run ``holdfast`` against it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from repo_node.cli import main
from tests.repo_node.cli.fake_node import PASSWORD, TOKEN, FakeNode, run_fake_node


class Holdfast:
    """Runs commands in a directory of the test's own; the environment knows the fake node unless told otherwise."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.results: list[Result] = []

    def __call__(self, *arguments: str, input: str | None = None) -> Result:
        result = CliRunner(env=self.environment).invoke(main, arguments, input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.results.append(result)
        return result


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with run_fake_node() as node:
        yield node


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Holdfast]:
    """The command line where no cluster is known. No command may ever show a secret."""
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    holdfast = Holdfast({})
    yield holdfast
    for result in holdfast.results:
        assert PASSWORD not in result.output
        assert TOKEN not in result.output


@pytest.fixture
def holdfast(nowhere: Holdfast, node: FakeNode) -> Holdfast:
    """The command line with the fake node in its environment."""
    nowhere.environment |= {"HOLDFAST_URL": node.url, "HOLDFAST_TOKEN": TOKEN}
    return nowhere
