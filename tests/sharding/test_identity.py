"""Which directories are taken for a shard, which are refused, and with what words."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.identity import FORMAT, ShardClaim, ShardIdentity, ShardIdentityError, claim, create, inspect
from sharding.identity import _parse_identity as parse_identity

CLUSTER = uuid.UUID("11111111-1111-4111-8111-111111111111")
SHARD = uuid.UUID("22222222-2222-4222-8222-222222222222")
EXPECTED = ShardIdentity(CLUSTER, SHARD)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
def made(path: Path) -> Path:
    create(path, CLUSTER, SHARD)
    return path


# --- create and inspect


def test_created_shard_is_found_again(path: Path) -> None:
    assert create(path, CLUSTER, SHARD) == EXPECTED
    assert inspect(path) == EXPECTED
    assert json.loads((path / "shard.json").read_text()) == {
        "cluster_id": str(CLUSTER),
        "shard_uid": str(SHARD),
        "format": FORMAT,
    }
    assert sorted(os.listdir(path)) == ["blobs", "shard.json", "tmp"]


def test_s41_create_makes_parents_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "shard"
    create(path, CLUSTER, SHARD)
    for made in (tmp_path / "a", tmp_path / "a" / "b", path, path / "blobs", path / "tmp"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "shard.json").stat().st_mode) == 0o600


def test_create_leaves_the_mode_of_an_existing_directory(path: Path) -> None:
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    create(path, CLUSTER, SHARD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_create_syncs_file_directory_and_new_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(file: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def noting_rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        steps.append(f"{source} -> {target}")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    path = tmp_path / "a" / "shard"
    create(path, CLUSTER, SHARD)
    assert steps == [
        str(tmp_path),
        str(tmp_path / "a"),
        str(path / ".shard.json.new"),
        ".shard.json.new -> shard.json",
        str(path),
        str(path),
    ]


@pytest.mark.parametrize("content", [[], ["lost+found"], [".shard.json.new"]])
def test_empty_directory_can_become_a_shard(path: Path, content: list[str]) -> None:
    path.mkdir()
    for name in content:
        (path / name).write_text("half")
    assert inspect(path) is None
    assert create(path, CLUSTER, SHARD) == inspect(path)


def test_absent_directory_can_become_a_shard(tmp_path: Path) -> None:
    assert inspect(tmp_path / "not" / "there") is None
    assert not (tmp_path / "not").exists()


def test_create_refuses_a_shard_and_leaves_it(made: Path) -> None:
    with pytest.raises(ShardIdentityError, match=f"{made} is shard {SHARD}"):
        create(made, CLUSTER, uuid.uuid4())
    assert inspect(made) == EXPECTED


def other_files(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").touch()


def link(path: Path) -> None:
    target = path.with_name("target")
    target.mkdir()
    path.symlink_to(target)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def file(path: Path) -> None:
    path.touch()


def under_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (other_files, "not empty (holiday.jpg)"),
        (link, "is a symbolic link"),
        (dangling_link, "is a symbolic link"),
        (file, "is not a directory"),
        (under_a_file, "is not a directory"),
    ],
)
@pytest.mark.parametrize("act", [inspect, lambda path: create(path, CLUSTER, SHARD)])
def test_directory_that_is_no_shard_is_refused_and_left_alone(
    tmp_path: Path, prepare: Callable[[Path], None], words: str, act: Callable[[Path], object]
) -> None:
    path = tmp_path / "place" / "shard"
    path.parent.mkdir()
    prepare(path)
    before = sorted(tmp_path.glob("**/*"))
    with pytest.raises(ShardIdentityError) as refusal:
        act(path)
    assert str(path) in str(refusal.value)
    if act is inspect:
        assert words in str(refusal.value)
    assert sorted(tmp_path.glob("**/*")) == before


def test_directory_without_permission_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open every directory")
    tmp_path.chmod(0o500)
    with pytest.raises(ShardIdentityError, match="may not create it"):
        inspect(tmp_path / "shard")


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    '"text"',
    "\x00",
    json.dumps({"cluster_id": str(CLUSTER), "shard_uid": str(SHARD)}),
    json.dumps({"cluster_id": str(CLUSTER), "shard_uid": 5, "format": 1}),
    json.dumps({"cluster_id": "no uuid", "shard_uid": str(SHARD), "format": 1}),
    json.dumps({"cluster_id": None, "shard_uid": str(SHARD), "format": 1}),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_identity_is_refused_and_kept(made: Path, text: str) -> None:
    (made / "shard.json").write_text(text)
    for act in (inspect, lambda path: claim(path, EXPECTED), lambda path: create(path, CLUSTER, SHARD)):
        with pytest.raises(ShardIdentityError, match=r"shard\.json"):
            act(made)
    assert (made / "shard.json").read_text() == text


@given(st.binary(max_size=200))
def test_any_bytes_are_an_identity_or_refused(text: bytes) -> None:
    try:
        found = parse_identity(Path("shard.json"), text)
    except ShardIdentityError:
        return
    assert isinstance(found, ShardIdentity)


def test_newer_format_is_refused_with_its_number(made: Path) -> None:
    (made / "shard.json").write_text(json.dumps({"cluster_id": str(CLUSTER), "shard_uid": str(SHARD), "format": 2}))
    with pytest.raises(ShardIdentityError, match="format 2"):
        inspect(made)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("other.json"), os.mkfifo, os.mkdir])
def test_identity_that_is_no_regular_file_is_refused_and_does_not_hang(
    made: Path, make: Callable[[Path], object]
) -> None:
    (made / "shard.json").rename(made / "other.json")
    make(made / "shard.json")
    with pytest.raises(ShardIdentityError, match=r"shard\.json"):
        inspect(made)


# --- claim


@pytest.fixture
def held(made: Path) -> ShardClaim:
    return claim(made, EXPECTED)


def test_second_claim_in_the_same_process_is_refused(made: Path, held: ShardClaim) -> None:
    with pytest.raises(ShardIdentityError, match=f"{made} is in use"):
        claim(made, EXPECTED)
    held.close()
    held.close()
    claim(made, EXPECTED).close()


def test_second_claim_through_another_path_is_refused(made: Path, held: ShardClaim, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ShardIdentityError, match="in use"):
        claim(tmp_path / "link" / "shard", EXPECTED)
    held.close()


def test_claim_of_another_process_is_refused_until_it_dies(made: Path) -> None:
    script = (
        "import sys, uuid, pathlib; from sharding.identity import *\n"
        "held = claim(pathlib.Path(sys.argv[1]), inspect(pathlib.Path(sys.argv[1])))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(made)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout and owner.stdout.readline() == b"held\n"
        try:
            with pytest.raises(ShardIdentityError, match=str(made)):
                claim(made, EXPECTED)
        finally:
            owner.kill()
            owner.wait()
    claim(made, EXPECTED).close()


def test_failed_claim_holds_nothing(made: Path) -> None:
    with pytest.raises(ShardIdentityError):
        claim(made, ShardIdentity(uuid.uuid4(), SHARD))
    claim(made, EXPECTED).close()


def test_shard_of_another_cluster_is_refused(made: Path) -> None:
    with pytest.raises(ShardIdentityError, match=f"{made} belongs to cluster {CLUSTER}"):
        claim(made, ShardIdentity(uuid.uuid4(), SHARD))


def test_other_shard_of_the_cluster_is_refused(made: Path) -> None:
    with pytest.raises(ShardIdentityError, match=f"{made} is shard {SHARD}"):
        claim(made, ShardIdentity(CLUSTER, uuid.uuid4()))


@pytest.mark.parametrize("exists", [True, False])
def test_empty_mount_point_is_refused_and_never_filled(path: Path, exists: bool) -> None:
    if exists:
        (path / "lost+found").mkdir(parents=True)
    with pytest.raises(ShardIdentityError, match="is the disk mounted"):
        claim(path, EXPECTED)
    assert path.exists() == exists
    assert not exists or os.listdir(path) == ["lost+found"]
