from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from repo_node.cli.connection import ConnectionOptions, find_endpoint
from repo_node.client.rest import Credentials, Endpoint
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import PASSWORD, TOKEN, FakeNode, Fault

STATUS = ("GET", "/api/holdfast/status")
EMPTY = {"cluster_id": "c", "nodes": [], "shards": [], "blobs": {"count": 0, "bytes": 0, "missing_copies": 0}}

pytestmark = pytest.mark.usefixtures("nowhere")


def make_data(directory: Path, url: str = "http://127.0.0.1:8080", password: str = PASSWORD) -> Path:
    directory.mkdir()
    cluster = {"front_url": url, "nodes": [{"id": "node1", "url": "http://127.0.0.1:8081"}]}
    (directory / "cluster.json").write_text(json.dumps(cluster))
    (directory / "admin-password").write_text(password + "\n")
    return directory


def bearer(token: str) -> str:
    return Credentials.bearer(token, "").authorization


def basic(user: str, password: str) -> str:
    return Credentials.basic(user, password, "").authorization


def test_a_missing_cluster_gives_a_sentence_and_status_2(nowhere: Holdfast) -> None:
    result = nowhere("status")
    assert result.exit_code == 2
    assert "No cluster is known here" in result.stderr
    assert "Start one with: holdfast up" in result.stderr


def test_missing_credentials_give_a_sentence_and_status_2(nowhere: Holdfast) -> None:
    result = nowhere("status", "--url", "http://127.0.0.1:8080")
    assert result.exit_code == 2
    assert "No credentials for http://127.0.0.1:8080" in result.stderr


def test_a_data_directory_without_a_cluster_gives_a_sentence(nowhere: Holdfast, tmp_path: Path) -> None:
    result = nowhere("status", "--data", "elsewhere")
    assert result.exit_code == 2
    assert "there is no elsewhere/cluster.json" in result.stderr
    assert "holdfast up --data elsewhere" in result.stderr


def test_the_default_data_directory_is_found(nowhere: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_data(tmp_path / "holdfast-data", node.url)
    node.json_answers[STATUS] = (200, EMPTY)
    result = nowhere("status", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == EMPTY


def test_a_named_data_directory_wins_over_the_environment(tmp_path: Path) -> None:
    data = make_data(tmp_path / "mine")
    environment = {"HOLDFAST_URL": "http://other", "HOLDFAST_TOKEN": "other"}
    endpoint = find_endpoint(ConnectionOptions(data=data), environment)
    assert endpoint.url == "http://127.0.0.1:8080"
    assert endpoint.credentials.authorization == basic("admin", PASSWORD)


def test_the_environment_wins_over_the_default_data_directory(tmp_path: Path) -> None:
    make_data(tmp_path / "holdfast-data")
    environment = {"HOLDFAST_URL": "http://other:1", "HOLDFAST_TOKEN": "other"}
    endpoint = find_endpoint(ConnectionOptions(), environment)
    assert (endpoint.url, endpoint.credentials.authorization) == ("http://other:1", bearer("other"))


def test_a_token_file_wins_over_everything(tmp_path: Path) -> None:
    data = make_data(tmp_path / "mine")
    (tmp_path / "token").write_text("mine\n")
    given = ConnectionOptions(data=data, token_file=str(tmp_path / "token"))
    endpoint = find_endpoint(given, {"HOLDFAST_TOKEN": "other"})
    assert endpoint.credentials.authorization == bearer("mine")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://127.0.0.1:8081/artifactory/"])
def test_the_local_password_goes_to_the_nodes_of_its_cluster(tmp_path: Path, url: str) -> None:
    make_data(tmp_path / "holdfast-data")
    endpoint = find_endpoint(ConnectionOptions(url=url), {})
    assert endpoint.credentials.authorization == basic("admin", PASSWORD)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9999", "https://127.0.0.1:8080", "http://evil.example"])
def test_the_local_password_goes_to_no_other_server(tmp_path: Path, url: str) -> None:
    make_data(tmp_path / "holdfast-data")
    with pytest.raises(click.UsageError, match="No credentials"):
        find_endpoint(ConnectionOptions(url=url), {})


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1"])
def test_a_token_of_the_environment_goes_nowhere_a_found_directory_points_to(tmp_path: Path, host: str) -> None:
    make_data(tmp_path / "holdfast-data", f"http://{host}:8080", password="of-that-directory")
    endpoint = find_endpoint(ConnectionOptions(), {"HOLDFAST_TOKEN": TOKEN})
    assert endpoint.credentials.authorization == basic("admin", "of-that-directory")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_token_of_the_environment_goes_to_the_local_cluster(tmp_path: Path, host: str) -> None:
    make_data(tmp_path / "holdfast-data", f"http://{host}:8080")
    endpoint = find_endpoint(ConnectionOptions(), {"HOLDFAST_TOKEN": TOKEN})
    assert endpoint.credentials.authorization == bearer(TOKEN)


def test_user_and_password_come_from_the_environment() -> None:
    environment = {"HOLDFAST_URL": "http://h", "HOLDFAST_USER": "ann", "HOLDFAST_PASSWORD": "pässword"}
    assert find_endpoint(ConnectionOptions(), environment).credentials.authorization == basic("ann", "pässword")


def test_the_password_of_a_named_user_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    given = ConnectionOptions(url="http://h", user="ann", password_file=str(tmp_path / "password"))
    assert find_endpoint(given, {}).credentials.authorization == basic("ann", "secret")


def test_a_token_is_read_from_standard_input(nowhere: Holdfast, node: FakeNode) -> None:
    node.json_answers[STATUS] = (200, EMPTY)
    result = nowhere("status", "--json", "--url", node.url, "--token-file", "-", input=f"{TOKEN}\n")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("given", "environment", "words"),
    [
        (ConnectionOptions(token_file="t", user="ann"), {}, "not both"),
        (ConnectionOptions(password_file="p"), {}, "--password-file needs --user"),
        (ConnectionOptions(), {"HOLDFAST_USER": "ann"}, "HOLDFAST_PASSWORD is not"),
        (ConnectionOptions(user="ann"), {}, "there is no password for ann"),
        (ConnectionOptions(user="a:b"), {"HOLDFAST_PASSWORD": "x"}, "cannot hold a colon"),
        (ConnectionOptions(token_file="missing"), {}, "missing cannot be read: No such file"),
        (ConnectionOptions(token_file="two-lines"), {}, "on one line"),
        (ConnectionOptions(token_file="empty"), {}, "on one line"),
    ],
)
def test_unusable_credentials_give_a_sentence(
    tmp_path: Path, given: ConnectionOptions, environment: dict[str, str], words: str
) -> None:
    (tmp_path / "two-lines").write_text("one\ntwo\n")
    (tmp_path / "empty").touch()
    with pytest.raises(click.ClickException) as caught:
        find_endpoint(given, {"HOLDFAST_URL": "http://h"} | environment)
    assert words in caught.value.format_message()


@pytest.mark.parametrize(
    "url", ["ftp://h", "h:8080", "http://", "http://h:0", "http://h:99999", "http://h?x=1", "http://[::1", "", "None"]
)
def test_a_bad_url_gives_a_sentence(url: str) -> None:
    with pytest.raises(click.UsageError, match="URL; write for example"):
        find_endpoint(ConnectionOptions(url=url), {"HOLDFAST_TOKEN": "x"})


def test_a_url_with_a_password_is_refused_and_not_repeated(nowhere: Holdfast) -> None:
    result = nowhere("status", "--url", f"http://admin:{PASSWORD}@127.0.0.1:8080")
    assert result.exit_code == 2
    assert "--url holds a user or password" in result.stderr


@pytest.mark.parametrize("document", ["not json", "[]"])
def test_a_broken_cluster_file_gives_a_sentence(nowhere: Holdfast, tmp_path: Path, document: str) -> None:
    make_data(tmp_path / "data")
    (tmp_path / "data/cluster.json").write_text(document)
    result = nowhere("status", "--data", "data")
    assert result.exit_code == 1
    assert "data/cluster.json" in result.stderr


def test_the_base_url_ends_in_artifactory_once() -> None:
    credentials = Credentials.bearer("x", "")
    assert Endpoint("http://h:1", credentials).base == "http://h:1/artifactory"
    assert Endpoint("http://h:1/artifactory/", credentials).base == "http://h:1/artifactory"


def test_credentials_never_show_their_secret() -> None:
    assert PASSWORD not in repr(Endpoint("http://h", Credentials.bearer(PASSWORD, "a file")))


def test_an_unreachable_cluster_ends_with_status_1(nowhere: Holdfast, tmp_path: Path) -> None:
    nowhere.environment |= {"HOLDFAST_URL": "http://127.0.0.1:1", "HOLDFAST_TOKEN": TOKEN}
    result = nowhere("status")
    assert result.exit_code == 1
    assert "Error: http://127.0.0.1:1 cannot be reached: Connection refused" in result.stderr
    assert "holdfast up" not in result.stderr, "that cluster is not one of this machine"


@pytest.mark.parametrize("command", [("status",), ("fsck",), ("run-once", "repair")])
def test_an_unreachable_cluster_of_this_machine_ends_with_how_to_start_it(
    nowhere: Holdfast, tmp_path: Path, command: tuple[str, ...]
) -> None:
    make_data(tmp_path / "holdfast-data", "http://127.0.0.1:1")
    result = nowhere(*command)
    assert result.exit_code == 1
    assert "If the cluster does not run, start it with: holdfast up\n" in result.stderr
    make_data(tmp_path / "else where", "http://127.0.0.1:2")
    assert "holdfast up --data 'else where'\n" in nowhere(*command, "--data", "else where").stderr


def test_a_redirect_is_named_and_not_followed(nowhere: Holdfast, node: FakeNode) -> None:
    nowhere.environment |= {"HOLDFAST_URL": node.url, "HOLDFAST_TOKEN": TOKEN}
    node.fail("GET", Fault(status=302, headers={"Location": "http://evil.example/"}))
    result = nowhere("status")
    assert result.exit_code == 1
    assert "redirects to http://evil.example/" in result.stderr
    assert len(node.seen) == 1
