"""Users, groups and permission targets on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import PASSWORD, FakeNode

USERS, GROUPS, TARGETS = "/api/security/users", "/api/security/groups", "/api/v2/security/permissions"


def test_user_create_prints_a_random_password_alone(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", USERS] = (200, [{"name": "admin"}])
    node.json_answers["PUT", f"{USERS}/ci"] = (201, None)
    result = holdfast("user", "create", "ci", "--email", "ci@example.org", "--group", "b", "--must-change")
    assert result.exit_code == 0, result.output
    [body] = node.bodies
    assert result.stdout == f"{body.pop('password')}\n" and len(result.stdout) > 20
    assert body == {
        "email": "ci@example.org",
        "admin": False,
        "groups": ["b"],
        "mustChangePassword": True,
        "internalPasswordDisabled": False,
    }


def test_user_create_takes_a_password_of_ones_choice_and_shows_it_nowhere(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.json_answers["GET", USERS] = (200, [])
    node.json_answers["PUT", f"{USERS}/ci"] = (201, None)
    (tmp_path / "secret").write_text("my-own-choice\n")
    result = holdfast("user", "create", "ci", "--email", "ci@example.org", "--new-password-file", "secret")
    assert result.exit_code == 0 and node.bodies[0]["password"] == "my-own-choice"
    assert "my-own-choice" not in result.output


def test_user_create_changes_nobody_who_is_there(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", USERS] = (200, [{"name": "ci"}])
    result = holdfast("user", "create", "ci", "--email", "ci@example.org")
    assert result.exit_code == 1 and "already" in result.stderr and not node.requests("PUT")


def test_user_list_marks_who_is_locked_out(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", USERS] = (200, [{"name": "admin"}, {"name": "alice"}])
    node.json_answers["GET", "/api/security/lockedUsers"] = (200, ["alice"])
    assert holdfast("user", "list").stdout == "admin\nalice  (locked out)\n"
    assert json.loads(holdfast("user", "list", "--json").stdout)["locked"] == ["alice"]


def test_user_change_says_only_what_is_to_be_changed(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", f"{USERS}/alice"] = (200, None)
    assert holdfast("user", "change", "alice", "--disabled").exit_code == 0
    assert node.bodies == [{"enabled": False}]
    assert holdfast("user", "change", "alice").exit_code == 2


def test_user_password_takes_the_old_one_from_the_login_and_shows_neither(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.json_answers["POST", f"{USERS}/authorization/changePassword"] = (200, None)
    (tmp_path / "old").write_text(PASSWORD)
    typed = "new-secret\nnew-secret\n"
    result = holdfast("user", "password", "--user", "admin", "--password-file", "old", input=typed)
    assert result.exit_code == 0, result.output
    assert "secret" not in result.output
    [body] = node.bodies
    assert (body["userName"], body["oldPassword"], body["newPassword2"]) == ("admin", PASSWORD, "new-secret")
    assert holdfast("user", "password").exit_code == 2, "a token has none"


def test_user_unlock_and_delete_call_their_routes(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["POST", "/api/security/unlockUsers/alice"] = (200, None)
    node.json_answers["POST", "/api/security/unlockAllUsers"] = (200, None)
    node.json_answers["DELETE", f"{USERS}/alice"] = (200, None)
    for arguments in (("unlock", "alice"), ("unlock",), ("delete", "alice")):
        assert holdfast("user", *arguments).exit_code == 0


def test_group_members_are_added_and_removed(holdfast: Holdfast, node: FakeNode) -> None:
    path = f"{GROUPS}/builders"
    node.json_answers["GET", f"{path}?includeUsers=true"] = (200, {"name": "builders", "userNames": ["a", "b"]})
    node.json_answers["POST", path] = (200, None)
    assert "a, b, c" in holdfast("group", "add", "builders", "c").stdout
    assert holdfast("group", "remove", "builders", "a", "b").exit_code == 0
    assert node.bodies == [{"userNames": ["a", "b", "c"]}, {"userNames": []}]
    assert "Members: a, b" in holdfast("group", "show", "builders").stdout


def test_permission_set_sends_the_whole_target(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["PUT", f"{TARGETS}/builds"] = (201, None)
    grants = ["--grant-group", "b=read,write", "--grant-user", "ci=read", "--grant-user", "ci=delete"]
    result = holdfast("permission", "set", "builds", "--repository", "ANY", "--include", "x/**", *grants)
    assert result.exit_code == 0, result.output
    assert node.bodies[0]["repo"] == {
        "repositories": ["ANY"],
        "include-patterns": ["x/**"],
        "exclude-patterns": [],
        "actions": {"users": {"ci": ["read", "delete"]}, "groups": {"b": ["read", "write"]}},
    }
    for wrong in ("ci", "ci=", "=read", "ci=fly"):
        assert holdfast("permission", "set", "x", "--repository", "ANY", "--grant-user", wrong).exit_code == 2


def test_permission_show_tells_where_and_who(holdfast: Holdfast, node: FakeNode) -> None:
    repo = {
        "repositories": ["generic-local"],
        "include-patterns": ["x/**"],
        "exclude-patterns": [""],
        "actions": {"users": {"ci": ["read"]}, "groups": {}},
    }
    node.json_answers["GET", f"{TARGETS}/builds"] = (200, {"name": "builds", "repo": repo})
    told = holdfast("permission", "show", "builds").stdout
    assert "Repositories: generic-local\nPaths: x/**\nBut not: -\n" in told and "ci" in told
