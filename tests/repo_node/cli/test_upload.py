from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repo_node.client import rest
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import PASSWORD, TOKEN, FakeNode, Fault, checksums

BIG = os.urandom(3 << 20)


def make_tree(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_upload_stores_a_file_and_declares_its_checksums(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "app.tgz").write_bytes(BIG)
    result = holdfast("upload", "app.tgz", "generic-local/app/1.0/")
    assert result.exit_code == 0, result.output
    assert node.files == {"generic-local/app/1.0/app.tgz": BIG}
    headers = node.requests("PUT")[0].headers
    for kind, value in checksums(BIG).items():
        assert headers[f"X-Checksum-{kind.capitalize()}"] == value
    assert headers["Content-Length"] == str(len(BIG))
    assert "app.tgz -> generic-local/app/1.0/app.tgz, 3.0 MiB" in result.stdout
    assert "Uploaded 1 file, 3.0 MiB" in result.stdout


def test_upload_stores_an_empty_file(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert holdfast("upload", "empty", "generic-local").exit_code == 0
    assert node.files == {"generic-local/empty": b""}


def test_upload_of_a_directory_keeps_its_name_and_its_tree(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_tree(tmp_path / "dist", {"a.txt": b"a", "sub/b.txt": b"b", "sub/deep/c.txt": b"c"})
    assert holdfast("upload", "dist", "generic-local/x/").exit_code == 0
    assert node.files == {
        "generic-local/x/dist/a.txt": b"a",
        "generic-local/x/dist/sub/b.txt": b"b",
        "generic-local/x/dist/sub/deep/c.txt": b"c",
    }


@pytest.mark.parametrize("source", ["dist/.", "dist/./"])
def test_upload_of_contents_leaves_the_name_of_the_directory_out(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, source: str
) -> None:
    make_tree(tmp_path / "dist", {"sub/b.txt": b"b"})
    assert holdfast("upload", source, "generic-local/x/").exit_code == 0
    assert node.files == {"generic-local/x/sub/b.txt": b"b"}


def test_upload_names_one_file_exactly_when_the_target_has_no_slash(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    (tmp_path / "build-output").write_bytes(b"x")
    assert holdfast("upload", "build-output", "generic-local/app/1.0.bin").exit_code == 0
    assert node.files == {"generic-local/app/1.0.bin": b"x"}


def test_upload_refuses_two_files_for_one_exact_place(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": b"1", "b": b"2"})
    result = holdfast("upload", "a", "b", "generic-local/c")
    assert result.exit_code == 2
    assert "generic-local/c must end with a slash" in result.stderr
    assert node.seen == []


@pytest.mark.parametrize(
    "name",
    ["with space", "100%", "%41", "a#b", "a?b=c", "a;k=v", "a+b", "a&b", "ünïcode-名前", "~.-_", "'quoted\"", "[x]"],
)
def test_upload_encodes_the_name(holdfast: Holdfast, node: FakeNode, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    result = holdfast("upload", name, "generic-local/d/")
    assert result.exit_code == 0, result.output
    assert node.files == {f"generic-local/d/{name}": b"x"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"back\\slash", "backslash"),
        (b"new\nline", "control character"),
        (b"latin-\xe9", "not valid UTF-8"),
        ("cafe\u0301".encode(), "NFC"),
    ],
)
def test_upload_reports_a_name_the_server_would_refuse_and_uploads_the_others(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, name: bytes, words: str
) -> None:
    make_tree(tmp_path / "dist", {"good": b"g"})
    Path(os.fsdecode(os.fsencode(tmp_path / "dist") + b"/" + name)).write_bytes(b"bad")
    result = holdfast("upload", "dist", "generic-local/")
    assert result.exit_code == 1
    assert words in result.stderr
    assert "1 failed:" in result.stderr
    assert node.files == {"generic-local/dist/good": b"g"}
    assert all(character.isprintable() or character == "\n" for character in result.output)


def test_upload_follows_links_and_reports_loops_and_dangling_ones(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    make_tree(tmp_path, {"real/file": b"f", "dist/own": b"o"})
    (tmp_path / "dist/linked").symlink_to("../real")
    (tmp_path / "dist/loop").symlink_to(".")
    (tmp_path / "dist/gone").symlink_to("nothing")
    os.mkfifo(tmp_path / "dist/pipe")
    result = holdfast("upload", "--json", "dist", "generic-local/")
    assert result.exit_code == 1
    assert node.files == {"generic-local/dist/linked/file": b"f", "generic-local/dist/own": b"o"}
    reasons = {failure["path"]: failure["reason"] for failure in json.loads(result.stdout)["failed"]}
    assert reasons == {
        "dist/gone": "it is a link to nothing",
        "dist/loop": "it is a link to a directory that it lies in",
        "dist/pipe": "it is neither a file nor a directory",
    }


def test_upload_refuses_a_second_file_for_the_same_place(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_tree(tmp_path, {"a/x": b"first", "b/x": b"second"})
    result = holdfast("upload", "a/x", "b/x", "generic-local/")
    assert result.exit_code == 1
    assert "a/x already goes to generic-local/x" in result.stderr
    assert node.files == {"generic-local/x": b"first"}


def test_upload_fails_when_there_is_nothing_to_upload(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    result = holdfast("upload", "dist", "missing", "generic-local/")
    assert result.exit_code == 1
    assert "dist: there is no file in it" in result.stderr
    assert "missing: cannot be read: No such file or directory" in result.stderr


def test_upload_fails_when_the_server_stored_other_bytes(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    node.fail("PUT", Fault(answer={"checksums": checksums(b"other")}))
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 1
    assert "the server says it stored 4 bytes with sha256" in result.stderr
    assert len(node.requests("PUT")) == 1


def test_upload_fails_when_the_answer_is_no_answer_of_a_node(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    node.fail("PUT", Fault(answer={"checksums": None}))
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 1
    assert "is it a Holdfast cluster?" in result.stderr


def test_upload_succeeds_after_the_connection_was_cut(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BIG)
    node.fail("PUT", Fault(cut_after_bytes=1 << 20), Fault(cut_after_bytes=2 << 20))
    result = holdfast("upload", "--json", "a", "generic-local/")
    assert result.exit_code == 0, result.output
    assert node.files == {"generic-local/a": BIG}
    assert json.loads(result.stdout)["uploaded"][0]["attempts"] == 3
    assert len(result.stderr.splitlines()) == result.stderr.count("again in") == 2


@pytest.mark.parametrize("status", [503, 429])
def test_upload_waits_as_long_as_the_server_asks(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, status: int
) -> None:
    (tmp_path / "a").write_bytes(BIG)
    node.fail("PUT", Fault(status=status, headers={"Retry-After": "1"}, message="too few shards"))
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 0, result.output
    assert f"too few shards (status {status}, request request-77); again in 1.0 s" in result.stderr
    assert node.files == {"generic-local/a": BIG}


def test_upload_asks_before_it_sends_a_large_body_and_only_the_first_time(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    make_tree(tmp_path, {"large": BIG, "small": b"x"})
    node.fail("PUT", Fault(status=503))
    assert holdfast("upload", "--jobs", "1", "large", "small", "generic-local/").exit_code == 0
    assert [seen.headers.get("Expect") for seen in node.requests("PUT")] == ["100-continue", None, None]


def test_upload_gives_up_after_the_retries_it_was_given(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    node.fail("PUT", *[Fault(status=503)] * 5)
    result = holdfast("upload", "--retries", "2", "a", "generic-local/")
    assert result.exit_code == 1
    assert len(node.requests("PUT")) == 3
    assert "status 503" in result.stderr


@pytest.mark.parametrize("status", [400, 403, 409, 413])
def test_upload_does_not_repeat_what_was_refused_for_good(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, status: int
) -> None:
    make_tree(tmp_path, {"a": BIG, "b": b"b"})
    node.fail("PUT", Fault(status=status, message="never"))
    result = holdfast("upload", "--jobs", "1", "a", "b", "generic-local/")
    assert result.exit_code == 1
    assert f"a: never (status {status}, request request-77)" in result.stderr
    assert node.files == {"generic-local/b": b"b"}
    assert len(node.requests("PUT")) == 2


def test_upload_stops_when_the_credentials_are_refused(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_tree(tmp_path / "dist", {f"{number:02}": BIG[:2000] for number in range(20)})
    holdfast.environment["HOLDFAST_TOKEN"] = "wrong-token"
    result = holdfast("upload", "--jobs", "2", "dist", "generic-local/")
    assert result.exit_code == 1
    assert "the credentials (the token in HOLDFAST_TOKEN) are not accepted: Bad credentials" in result.stderr
    assert "18 more files not tried" in result.stderr
    assert "wrong-token" not in result.output
    assert len(node.requests("PUT")) == 2


def test_upload_says_that_nobody_listens(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        holdfast.environment["HOLDFAST_URL"] = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = holdfast("upload", "--retries", "1", "a", "generic-local/")
    assert result.exit_code == 1
    assert "cannot be reached: Connection refused; again in" in result.stderr


def test_upload_hashes_a_changed_file_anew_before_it_repeats(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"before")
    node.fail("PUT", Fault(before=lambda: change(tmp_path / "a", b"after!"), status=503))
    assert holdfast("upload", "a", "generic-local/").exit_code == 0
    assert node.files == {"generic-local/a": b"after!"}


def test_upload_says_that_a_file_changed_when_the_server_finds_it_wrong(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"before")
    node.fail("PUT", Fault(before=lambda: change(tmp_path / "a", b"after!"), status=409, message="wrong sha256"))
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 1
    assert "a: the file changes while it is uploaded" in result.stderr


def test_upload_says_that_a_file_shrank_while_it_was_sent(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(BIG)

    async def shrink_first(self: Any) -> Any:
        change(path, b"short")
        async for piece in pieces(self):
            yield piece

    from repo_node.client.upload import FileBody

    pieces = FileBody.pieces
    monkeypatch.setattr(FileBody, "pieces", shrink_first)
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 1
    assert "a: the file changes while it is uploaded" in result.stderr
    assert node.files == {}


def test_upload_gives_up_on_a_server_that_says_nothing(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "SILENCE_SECONDS_MAX", 0.3)
    (tmp_path / "a").write_bytes(BIG)
    node.fail("PUT", Fault(is_silent=True))
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 0, result.output
    assert "nothing moved on the connection" in result.stderr
    assert node.files == {"generic-local/a": BIG}


def test_upload_runs_no_more_jobs_than_it_was_given(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_tree(tmp_path / "dist", {f"{number:02}": BIG[number : 1 << 20] for number in range(12)})
    assert holdfast("upload", "--jobs", "3", "dist", "generic-local/").exit_code == 0
    assert len(node.files) == 12
    assert 1 < node.in_flight_max <= 3


def test_upload_json_lists_every_file(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": b"1", "b": b"22"})
    node.fail("PUT", Fault(status=400, message="no"))
    result = holdfast("upload", "--json", "--jobs", "1", "a", "b", "generic-local/")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["failed"] == [{"path": "a", "reason": "no (status 400, request request-77)"}]
    assert [(row["path"], row["target"], row["bytes"]) for row in document["uploaded"]] == [("b", "generic-local/b", 2)]
    assert document["uploaded"][0]["sha256"] == checksums(b"22")["sha256"]
    assert (document["complete"], document["bytes"], document["untried"]) == (False, 2, 0)


def test_upload_is_quiet_about_files_without_progress(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    result = holdfast("upload", "--no-progress", "a", "generic-local/")
    assert result.output.startswith("Uploaded 1 file")


def test_upload_draws_bars_on_a_terminal(node: FakeNode, nowhere: Holdfast, tmp_path: Path) -> None:
    make_tree(tmp_path / "dist", {"one.bin": BIG, "two.bin": BIG})
    node.fail("PUT", Fault(status=503, message="busy [red]now[/red]"))
    shown = run_on_terminal(tmp_path, node.url, "upload", "dist", "generic-local/")
    assert "uploading" in shown
    assert "6.0 MiB" in shown
    assert "busy [red]now[/red]" in shown
    assert "Uploaded 2 files, 6.0 MiB" in shown
    assert "->" not in shown
    assert TOKEN not in shown
    assert PASSWORD not in shown
    assert len(node.files) == 2


def test_upload_draws_nothing_on_a_terminal_without_progress(node: FakeNode, nowhere: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(BIG)
    shown = run_on_terminal(tmp_path, node.url, "upload", "--no-progress", "one.bin", "generic-local/")
    assert "\x1b" not in shown
    assert shown.startswith("Uploaded 1 file")


def run_on_terminal(directory: Path, url: str, *arguments: str) -> str:
    """Run ``holdfast`` on a pseudo-terminal of 80 columns and return what it showed."""
    control, terminal = os.openpty()
    environment = dict(os.environ, HOLDFAST_URL=url, HOLDFAST_TOKEN=TOKEN, COLUMNS="80", TERM="xterm")
    process = subprocess.Popen(
        [sys.executable, "-m", "repo_node", *arguments],
        cwd=directory,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = bytearray()
    try:
        while piece := os.read(control, 65536):
            shown += piece
    except OSError:
        # The terminal is gone when its last user is.
        pass
    finally:
        os.close(control)
    assert process.wait(30) == 0, shown.decode()
    return shown.decode()


def change(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (1, 1))


def test_upload_sends_nothing_of_what_the_cluster_knows(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "app.tgz").write_bytes(BIG)
    node.files["generic-local/old"] = BIG
    result = holdfast("upload", "--json", "app.tgz", "generic-local/")
    assert result.exit_code == 0, result.output
    assert node.files["generic-local/app.tgz"] == BIG
    assert node.requests("PUT") == []
    [asked] = node.requests("CHECKSUM")
    assert asked.headers["X-Checksum-Sha256"] == checksums(BIG)["sha256"]
    assert asked.headers.get("Content-Length", "0") == "0"
    [done] = json.loads(result.stdout)["uploaded"]
    assert (done["known"], done["bytes"]) == (True, len(BIG))


@pytest.mark.parametrize(("option", "size", "asked"), [([], 10 << 10, 1), ([], (10 << 10) - 1, 0), (["2000000"], 4, 0)])
def test_upload_asks_only_from_a_size_whether_content_is_known(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, option: list[str], size: int, asked: int
) -> None:
    (tmp_path / "a").write_bytes(BIG[:size])
    options = [text for value in option for text in ("--known-bytes-min", value)]
    assert holdfast("upload", *options, "a", "generic-local/").exit_code == 0
    assert node.files == {"generic-local/a": BIG[:size]}
    assert len(node.requests("CHECKSUM")) == asked
    assert len(node.requests("PUT")) == 1


def test_upload_asks_once_whether_content_is_known_however_often_it_sends(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(BIG)
    node.fail("PUT", Fault(status=503, headers={"Retry-After": "0"}), Fault(cut_after_bytes=1 << 20))
    assert holdfast("upload", "a", "generic-local/").exit_code == 0
    assert len(node.requests("CHECKSUM")) == 1
    assert len(node.requests("PUT")) == 3


def test_upload_repeats_a_question_that_was_not_answered(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BIG)
    node.files["generic-local/old"] = BIG
    node.fail("CHECKSUM", Fault(status=503, headers={"Retry-After": "0"}))
    assert holdfast("upload", "a", "generic-local/").exit_code == 0
    assert len(node.requests("CHECKSUM")) == 2
    assert node.requests("PUT") == []


def test_upload_fails_where_a_question_is_refused(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BIG)
    node.fail("CHECKSUM", Fault(status=409, message="a folder is there"))
    result = holdfast("upload", "a", "generic-local/")
    assert result.exit_code == 1
    assert "a folder is there" in result.stderr
    assert node.requests("PUT") == []
