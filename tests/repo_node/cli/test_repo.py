from __future__ import annotations

import json
from typing import Any

import pytest

from repo_node.cli.wording import parse_bytes
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode
from tests.repo_node.nodes import PASSWORD, RunningCluster

ROW = {"key": "releases", "type": "LOCAL", "description": "shipped", "url": "u", "packageType": "Generic"}


@pytest.fixture
def real(nowhere: Holdfast, one: RunningCluster) -> Holdfast:
    """The command line with a running node in its environment."""
    url = f"http://127.0.0.1:{one.first.port}"
    nowhere.environment |= {"HOLDFAST_URL": url, "HOLDFAST_USER": "admin", "HOLDFAST_PASSWORD": PASSWORD}
    return nowhere


def told(holdfast: Holdfast, key: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(holdfast("repo", "show", key, "--json").stdout)
    return document


def test_repositories_are_made_changed_shown_and_deleted(real: Holdfast, one: RunningCluster) -> None:
    made = real(
        "repo", "create", "cli-a", "--no-overwrite", "--no-delete", "--quota", "2MiB", "--description", "shipped"
    )
    assert (made.exit_code, made.stdout) == (0, "Successfully created repository 'cli-a'\n"), made.output
    document = told(real, "cli-a")
    assert (document["allowOverwrite"], document["allowDelete"], document["quotaBytes"]) == (False, False, 2 << 20)
    arguments = ["--member", "cli-a", "--member", "generic-local", "--deploy-to", "generic-local"]
    assert real("repo", "create", "cli-v", *arguments).exit_code == 0
    document = told(real, "cli-v")
    assert (document["repositories"], document["defaultDeploymentRepo"]) == (
        ["cli-a", "generic-local"],
        "generic-local",
    )
    listed = real("repo", "list", "--type", "virtual").stdout
    assert "cli-v" in listed and "cli-a" not in listed
    assert real("repo", "update", "cli-a", "--quota", "none", "--excludes", "**/*.exe").exit_code == 0
    document = told(real, "cli-a")
    assert (document["quotaBytes"], document["excludesPattern"], document["allowDelete"]) == (None, "**/*.exe", False)
    shown = real("repo", "show", "cli-a").stdout
    assert "shipped" in shown and "allowOverwrite" in shown
    assert "no such" not in real("repo", "delete", "cli-v", "--yes").output
    assert real("repo", "delete", "cli-a", "--yes").exit_code == 0
    gone = real("repo", "show", "cli-a")
    assert gone.exit_code == 1 and "no repository cli-a" in gone.output


def test_a_refusal_is_a_sentence(real: Holdfast) -> None:
    refused = real("repo", "create", "cli-bad", "--member", "no-such")
    assert refused.exit_code == 1 and "there is no repository no-such" in refused.output


def test_delete_asks_first(holdfast: Holdfast, node: FakeNode) -> None:
    assert holdfast("repo", "delete", "releases", input="n\n").exit_code == 1
    assert node.seen == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["update", "releases"],
        ["update", "releases", "--quota", "much"],
        ["update", "releases", "--redundancy", "0"],
        ["create", "releases", "--checksum-policy", "none"],
        ["list", "--type", "remote"],
    ],
)
def test_wrong_options_are_wrong_usage(holdfast: Holdfast, arguments: list[str]) -> None:
    assert holdfast("repo", *arguments).exit_code == 2


def test_what_is_not_given_is_not_sent(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", "/api/repositories/releases"] = (200, {})
    assert holdfast("repo", "update", "releases", "--redundancy", "default", "--trash").exit_code == 0
    assert node.bodies == [{"redundancy": None, "trash": True}]


def test_an_empty_list_says_how_to_make_one(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", "/api/repositories"] = (200, [])
    assert "holdfast repo create" in holdfast("repo", "list").stdout
    node.json_answers["GET", "/api/repositories"] = (200, [ROW])
    assert json.loads(holdfast("repo", "list", "--json").stdout) == [ROW]


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("4096", "1KiB", "1.5 GiB", "0")] == [4096, 1024, 3 << 29, 0]
    for bad in ("", "-1", "1KB", "x", "1e9"):
        with pytest.raises(ValueError, match="size"):
            parse_bytes(bad)
