from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode, Fault, checksums

BIG = os.urandom(3 << 20)


def test_download_brings_the_file_and_leaves_nothing_else(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/app/1.0/app.tgz"] = BIG
    result = holdfast("download", "generic-local/app/1.0/app.tgz")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "app.tgz").read_bytes() == BIG
    assert names_in(tmp_path) == ["app.tgz"]
    assert "generic-local/app/1.0/app.tgz -> app.tgz, 3.0 MiB" in result.stdout
    assert node.requests("GET")[-1].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("output", "expected"), [("new-name", "new-name"), ("made/", "made/a"), ("there", "there/a"), ("x/y", "x/y")]
)
def test_download_goes_where_it_is_told(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, output: str, expected: str
) -> None:
    (tmp_path / "there").mkdir()
    node.files["generic-local/a"] = b"x"
    assert holdfast("download", "generic-local/a", "-o", output).exit_code == 0
    assert (tmp_path / expected).read_bytes() == b"x"


def test_download_brings_an_empty_file(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/empty"] = b""
    assert holdfast("download", "generic-local/empty").exit_code == 0
    assert (tmp_path / "empty").read_bytes() == b""


def test_download_replaces_an_older_file(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"older and longer")
    node.files["generic-local/a"] = b"newer"
    assert holdfast("download", "generic-local/a").exit_code == 0
    assert (tmp_path / "a").read_bytes() == b"newer"


def test_download_goes_on_by_range_after_a_cut(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = BIG
    node.fail("GET", Fault(cut_after_bytes=2_000_000))
    result = holdfast("download", "--json", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a").read_bytes() == BIG
    again = node.requests("GET")[-1].headers
    assert again["If-Range"] == f'"{checksums(BIG)["sha256"]}"'
    row = json.loads(result.stdout)["downloaded"][0]
    # A client that is held up may not have read all that came before the cut.
    assert 0 < row["resumed_at_bytes"] <= 2_000_000 and row["attempts"] == 2
    assert again["Range"] == f"bytes={row['resumed_at_bytes']}-"


def test_download_goes_on_where_an_earlier_command_ended(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = BIG
    node.fail("GET", Fault(cut_after_bytes=1_500_000))
    assert holdfast("download", "--retries", "0", "generic-local/a").exit_code == 1
    assert names_in(tmp_path) == ["a.part", "a.part.etag"]
    part = (tmp_path / "a.part").read_bytes()
    assert 0 < len(part) <= 1_500_000 and part == BIG[: len(part)]
    result = holdfast("download", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert node.requests("GET")[-1].headers["Range"] == f"bytes={len(part)}-"
    assert (tmp_path / "a").read_bytes() == BIG
    assert names_in(tmp_path) == ["a"]


def test_download_resumes_a_part_file_without_a_note(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = BIG
    (tmp_path / "a.part").write_bytes(BIG[:1000])
    assert holdfast("download", "generic-local/a").exit_code == 0
    assert node.requests("GET")[-1].headers["Range"] == "bytes=1000-"
    assert (tmp_path / "a").read_bytes() == BIG


def test_download_takes_a_complete_part_file_without_another_byte(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.files["generic-local/a"] = BIG
    (tmp_path / "a.part").write_bytes(BIG)
    assert holdfast("download", "generic-local/a").exit_code == 0
    assert [seen.raw_path for seen in node.requests("GET")] == ["/artifactory/api/storage/generic-local/a"]
    assert (tmp_path / "a").read_bytes() == BIG


@pytest.mark.parametrize(("foreign", "attempts"), [(b"not a part of it", 2), (BIG[::-1], 2), (BIG + b"longer", 1)])
def test_download_starts_anew_when_the_part_file_is_of_something_else(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, foreign: bytes, attempts: int
) -> None:
    node.files["generic-local/a"] = BIG
    (tmp_path / "a.part").write_bytes(foreign)
    result = holdfast("download", "--json", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["downloaded"][0]["attempts"] == attempts
    assert (tmp_path / "a").read_bytes() == BIG
    assert names_in(tmp_path) == ["a"]


def test_download_starts_anew_when_the_server_sends_another_range_than_was_asked_for(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.files["generic-local/a"] = BIG
    (tmp_path / "a.part").write_bytes(BIG[:1000])
    node.fail("GET", Fault(headers={"Content-Range": f"bytes 0-{len(BIG) - 1}/{len(BIG)}"}))
    result = holdfast("download", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert "another part of the file than it was asked for" in result.stderr
    assert (tmp_path / "a").read_bytes() == BIG


def test_download_starts_anew_when_the_artifact_has_changed(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    newer = os.urandom(2 << 20)
    node.files["generic-local/a"] = BIG
    node.fail("GET", Fault(cut_after_bytes=1_500_000))
    assert holdfast("download", "--retries", "0", "generic-local/a").exit_code == 1
    node.files["generic-local/a"] = newer
    result = holdfast("download", "--json", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a").read_bytes() == newer
    assert "Range" not in node.requests("GET")[-1].headers
    assert json.loads(result.stdout)["downloaded"][0]["attempts"] == 1


def test_download_starts_anew_when_the_artifact_changes_just_before_the_range_is_asked(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    newer = os.urandom(2 << 20)
    node.files["generic-local/a"] = BIG
    node.fail(
        "GET",
        Fault(cut_after_bytes=1_500_000),
        Fault(before=lambda: node.files.update({"generic-local/a": newer})),
    )
    result = holdfast("download", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert "Range" in node.requests("GET")[-1].headers
    assert (tmp_path / "a").read_bytes() == newer


def test_download_throws_corrupt_bytes_away_and_asks_again(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = BIG
    node.fail("GET", Fault(flip_byte=1_234_567))
    result = holdfast("download", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert "do not have the sha256" in result.stderr
    assert (tmp_path / "a").read_bytes() == BIG


def test_download_leaves_no_file_when_the_bytes_stay_corrupt(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"older")
    node.files["generic-local/a"] = BIG
    node.fail("GET", Fault(flip_byte=0), Fault(flip_byte=len(BIG) - 1))
    result = holdfast("download", "--retries", "1", "generic-local/a")
    assert result.exit_code == 1
    assert "do not have the sha256" in result.stderr
    assert (tmp_path / "a").read_bytes() == b"older"
    assert names_in(tmp_path) == ["a"]


def test_download_refuses_an_answer_it_cannot_verify(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = b"x"
    node.fail("GET", Fault(headers={"X-Checksum-Sha256": "none"}))
    result = holdfast("download", "generic-local/a")
    assert result.exit_code == 1
    assert "no X-Checksum-Sha256 to verify the download with" in result.stderr
    assert not (tmp_path / "a").exists()


def test_download_waits_as_long_as_the_server_asks(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = b"x"
    node.fail("GET", Fault(status=503, headers={"Retry-After": "1"}, message="all replicas are away"))
    result = holdfast("download", "generic-local/a")
    assert result.exit_code == 0, result.output
    assert "all replicas are away (status 503, request request-77); again in 1.0 s" in result.stderr


def test_download_says_that_there_is_no_such_artifact_and_brings_the_others(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.files["generic-local/a"] = b"x"
    result = holdfast("download", "generic-local/none", "generic-local/a")
    assert result.exit_code == 1
    assert "generic-local/none: Unable to find item (status 404" in result.stderr
    assert (tmp_path / "a").read_bytes() == b"x"


def test_download_of_what_was_uploaded_gives_the_same_tree(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    tree = {
        "a.txt": b"a",
        "100% #1; what?.txt": b"odd",
        "sub/ünï/深い.bin": BIG,
        "sub/x": b"x",
        "sub/x.part": b"a file of that very name",
        "sub/x.part.etag": b"and of that",
        "empty": b"",
    }
    for name, content in tree.items():
        (tmp_path / "dist" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dist" / name).write_bytes(content)
    assert holdfast("upload", "dist", "generic-local/r/").exit_code == 0
    result = holdfast("download", "generic-local/r/dist", "-o", "back")
    assert result.exit_code == 0, result.output
    assert tree_of(tmp_path / "back/dist") == tree
    assert holdfast("download", "generic-local/r/dist/.", "-o", "flat").exit_code == 0
    assert tree_of(tmp_path / "flat") == tree
    assert holdfast("download", "generic-local").exit_code == 0
    assert tree_of(tmp_path / "generic-local/r/dist") == tree


@pytest.mark.parametrize("name", ["..", "../evil", "sub/../../evil", "/etc/evil", "a\\b", "a\u0000b", ""])
@pytest.mark.parametrize("folder", [True, False])
def test_download_takes_no_name_that_leaves_its_directory(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path, name: str, folder: bool
) -> None:
    node.files["generic-local/d/good"] = b"g"
    children = [{"uri": f"/{name}", "folder": folder}, {"uri": "/good", "folder": False}]
    node.fail("LIST", Fault(answer={"children": children}))
    result = holdfast("download", "generic-local/d", "-o", "out/")
    assert result.exit_code == 1
    assert "1 failed:" in result.stderr
    assert tree_of(tmp_path) == {"out/d/good": b"g"}


def test_download_reports_a_folder_it_cannot_list_and_brings_the_rest(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.files |= {"generic-local/d/a": b"a", "generic-local/d/sub/b": b"b"}
    node.fail("LIST", Fault(), Fault(status=403, message="not yours"))
    result = holdfast("download", "generic-local/d")
    assert result.exit_code == 1
    assert "generic-local/d/sub: not yours (status 403" in result.stderr
    assert tree_of(tmp_path) == {"d/a": b"a"}


def test_download_refuses_two_artifacts_for_one_file(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files |= {"generic-local/1/a": b"one", "generic-local/2/a": b"two"}
    result = holdfast("download", "--jobs", "1", "generic-local/1/a", "generic-local/2/a")
    assert result.exit_code == 1
    assert "generic-local/1/a already goes to a" in result.stderr
    assert (tmp_path / "a").read_bytes() == b"one"


def test_download_brings_what_is_named_twice_once(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files["generic-local/a"] = b"one"
    result = holdfast("download", "--json", "generic-local/a", "/generic-local/a/")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["downloaded"]) == 1


def test_download_refuses_while_another_writes_the_same_part(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    node.files["generic-local/a"] = BIG
    with (tmp_path / "a.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = holdfast("download", "generic-local/a")
    assert result.exit_code == 1
    assert "another download is writing a.part" in result.stderr


def test_download_says_why_a_file_cannot_be_written(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.files |= {"generic-local/a": b"a", "generic-local/b": b"b"}
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/b.part").symlink_to("elsewhere")
    result = holdfast("download", "generic-local/a", "generic-local/b", "-o", "out")
    assert result.exit_code == 1
    assert "generic-local/a: out/a is a directory" in result.stderr
    assert "generic-local/b: out/b.part cannot be written" in result.stderr
    assert not (tmp_path / "out/elsewhere").exists()


@pytest.mark.parametrize("path", ["", "/", "generic-local//a", "generic-local/../a", "generic-local/a\\b"])
def test_download_refuses_a_bad_path_as_usage(holdfast: Holdfast, node: FakeNode, path: str) -> None:
    result = holdfast("download", path)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert node.seen == []


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def tree_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
