from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode, Fault

PATH = "/api/holdfast/tokens"
SECRET = "hf_u_the-new-token"
MADE = {"id": 7, "token": SECRET, "scopes": ["read", "write"], "expires_in_seconds": 2_592_000}
ROW: dict[str, Any] = {
    "id": 7,
    "user": "admin",
    "ending": "oken",
    "description": "build agents",
    "scopes": ["read", "write"],
    "created_at": "2020-01-02T03:04:05.678+00:00",
    "expires_at": None,
}


def test_token_create_prints_the_token_alone_on_standard_output(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", PATH] = (201, MADE)
    arguments = ["--scope", "read", "--scope", "write", "--scope", "read", "--expires", "30d", "--description", "ci"]
    result = holdfast("token", "create", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{SECRET}\n"
    assert "Token 7 (read, write) expires in 30 d 0 h; keep it" in result.stderr
    assert node.bodies == [{"description": "ci", "scopes": ["read", "write"], "expires_in_seconds": 2_592_000}]


def test_token_create_asks_for_no_end_unless_told(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", PATH] = (201, MADE | {"expires_in_seconds": None})
    result = holdfast("token", "create", "--scope", "read", "--json")
    assert json.loads(result.stdout)["token"] == SECRET
    assert node.bodies[0]["expires_in_seconds"] is None
    assert "does not expire" in result.stderr


def test_token_create_writes_a_file_that_only_its_owner_can_read(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.json_answers["POST", PATH] = (201, MADE)
    result = holdfast("token", "create", "--scope", "read", "--output", "token", "--json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "token").read_text() == f"{SECRET}\n"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert SECRET not in result.output
    assert json.loads(result.stdout)["token_file"] == "token"


def test_token_create_names_the_token_whose_file_cannot_be_written(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", PATH] = (201, MADE)
    result = holdfast("token", "create", "--scope", "read", "--output", "no-such-directory/token")
    assert result.exit_code == 1
    assert "revoke it with: holdfast token revoke 7" in result.stderr
    assert SECRET not in result.output


def test_token_create_is_not_repeated_when_it_may_have_been_done(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", PATH] = (201, MADE)
    node.fail("POST", Fault(cut_after_bytes=0))
    result = holdfast("token", "create", "--scope", "read")
    assert result.exit_code == 1
    assert "the connection to" in result.stderr
    assert len(node.requests("POST")) == 1


def test_token_create_is_repeated_when_the_server_was_busy(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", PATH] = (201, MADE)
    node.fail("POST", Fault(status=503))
    assert holdfast("token", "create", "--scope", "read").exit_code == 0
    assert len(node.requests("POST")) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--scope", "everything"],
        ["--scope", "read", "--expires", "tomorrow"],
        ["--scope", "read", "--expires", "0d"],
        ["--scope", "read", "--expires", "-3d"],
    ],
)
def test_token_create_refuses_bad_values(holdfast: Holdfast, node: FakeNode, arguments: list[str]) -> None:
    assert holdfast("token", "create", *arguments).exit_code == 2
    assert node.seen == []


def test_token_list_shows_the_tokens_in_80_columns(holdfast: Holdfast, node: FakeNode) -> None:
    rows = [ROW, ROW | {"id": 8, "description": "[b]x[/b]", "expires_at": "2030-12-31T23:59:59Z"}]
    node.json_answers["GET", PATH] = (200, {"tokens": rows})
    result = holdfast("token", "list")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for words in ("...oken", "never", "[b]x[/b]", "2030-12-31"):
        assert words in result.stdout
    assert json.loads(holdfast("token", "list", "--json").stdout) == {"tokens": rows}


def test_token_list_says_how_to_make_the_first(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", PATH] = (200, {"tokens": []})
    assert "holdfast token create --scope read" in holdfast("token", "list").stdout


def test_token_revoke_deletes_it(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["DELETE", f"{PATH}/7"] = (204, None)
    assert holdfast("token", "revoke", "7").stdout == "Token 7 is revoked.\n"
    assert holdfast("token", "revoke", "8").exit_code == 1
    assert holdfast("token", "revoke", "seven").exit_code == 2
    assert len(node.requests("DELETE")) == 2


def test_token_create_for_another_user_with_all_rights_or_those_of_groups(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", PATH] = (201, MADE)
    assert holdfast("token", "create", "--for", "ci", "--all-rights").exit_code == 0
    assert holdfast("token", "create", "--group", "b", "--group", "c").exit_code == 0
    assert [(body["scopes"], body.get("user")) for body in node.bodies] == [
        (["applied-permissions/user"], "ci"),
        (["applied-permissions/groups:b,c"], None),
    ]
    assert holdfast("token", "create").exit_code == 2
