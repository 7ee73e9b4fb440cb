"""The files of a cluster: modes, what a node's TOML says, and what survives the next start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from repo_node import config
from repo_node.launch import private
from repo_node.launch.errors import PlanError
from repo_node.launch.layout import SHARD_RESERVE_BYTES, ClusterRecord, Layout, NodeRecord
from repo_node.launch.plan import Options, make_plan

DSN = "postgresql://holdfast:secret@127.0.0.1:20000/holdfast"
PLAN = make_plan(Options())


@pytest.fixture(params=[0o022, 0o000])
def layout(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Layout]:
    before = os.umask(request.param)
    layout = Layout(tmp_path / "data")
    private.make_private_directory(layout.directory)
    yield layout
    os.umask(before)


def write_all(layout: Layout, dsn: str = DSN) -> None:
    layout.ensure_cluster_key()
    layout.ensure_admin_password()
    for node in PLAN.nodes:
        layout.write_node(node, PLAN, dsn)


def make_record() -> ClusterRecord:
    node = NodeRecord("node-1", "zone-1", "http://127.0.0.1:8081", "http://127.0.0.1:8181", 7, "/x/node.toml")
    return ClusterRecord("http://127.0.0.1:9000", DSN, 5, 6, "/x/postgres/data", (node,))


def test_s41_files_are_0600_and_directories_0700_whatever_the_umask(layout: Layout) -> None:
    write_all(layout)
    layout.write_record(make_record())
    private.open_log(layout.log("node-1")).close()
    modes = {path: path.stat().st_mode & 0o777 for path in [layout.directory, *layout.directory.rglob("*")]}
    assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o600"}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}


def test_existing_directory_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    private.make_private_directory(tmp_path / "open" / "a" / "b")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "open" / "a").stat().st_mode & 0o777 == 0o700


def test_node_configuration_is_what_a_node_takes(layout: Layout) -> None:
    write_all(layout)
    node = config.load(layout.config("node-2"))
    assert (node.node.id, node.node.zone, node.database.dsn) == ("node-2", "zone-2", DSN)
    assert (str(node.http.listen), str(node.http.shared_listen)) == ("127.0.0.1:8082", "127.0.0.1:8080")
    assert str(node.internal.listen) == "127.0.0.1:8182"
    assert [shard.path for shard in node.shards] == [layout.node_directory("node-2") / f"shard-{n}" for n in (1, 2)]
    assert all(shard.reserve_bytes == SHARD_RESERVE_BYTES and shard.path.is_dir() for shard in node.shards)
    assert len(node.cluster_key) == 32


def test_cluster_key_and_password_stay_when_there_is_one(layout: Layout) -> None:
    write_all(layout)
    key, (password, _) = layout.cluster_key.read_text(), layout.ensure_admin_password()
    write_all(layout)
    assert layout.cluster_key.read_text() == key
    assert layout.ensure_admin_password() == (password, False)


def test_node_configuration_is_not_touched_when_nothing_changed(layout: Layout) -> None:
    write_all(layout)
    path = layout.config("node-1")
    path.write_text(path.read_text() + "# a comment of mine\n")
    write_all(layout)
    assert path.read_text().endswith("# a comment of mine\n")


def test_node_configuration_keeps_what_the_user_added_when_the_dsn_changes(layout: Layout) -> None:
    write_all(layout)
    path = layout.config("node-1")
    own = '\n[[shards]]\npath = "/mnt/my \\"disk\\""\nweight = 2.5\n\n[log]\nlevel = "debug"\n'
    path.write_text(path.read_text().replace("[http]", "[http]\nidle_timeout_seconds = 7.5") + own)
    write_all(layout, DSN.replace("20000", "20001"))
    node = config.load(path)
    assert node.database.dsn.endswith("20001/holdfast")
    assert (node.http.idle_timeout_seconds, node.log.level) == (7.5, "debug")
    assert [(str(shard.path), shard.weight) for shard in node.shards][2:] == [('/mnt/my "disk"', 2.5)]
    assert [found.shards for found in layout.find_nodes()] == [2, 2, 2]


def test_lost_shard_directory_is_not_made_again(layout: Layout) -> None:
    write_all(layout)
    lost = layout.node_directory("node-1") / "shard-2"
    lost.rmdir()
    write_all(layout, DSN.replace("20000", "20001"))
    assert not lost.exists()


def test_shards_are_added_when_the_plan_has_more(layout: Layout) -> None:
    write_all(layout)
    grown = make_plan(Options(shards=3), layout.find_nodes())
    layout.write_node(grown.nodes[0], grown, DSN)
    assert [shard.path.name for shard in config.load(layout.config("node-1")).shards] == [
        "shard-1",
        "shard-2",
        "shard-3",
    ]
    assert (layout.node_directory("node-1") / "shard-3").is_dir()


def test_record_reads_back_as_written(layout: Layout) -> None:
    assert layout.read_record() is None
    assert layout.find_front_port() is None
    layout.write_record(make_record())
    assert layout.read_record() == make_record()
    assert layout.find_front_port() == 9000


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nodes": []}', '{"nodes": [{"id": 1}]}'])
def test_record_is_refused_with_its_name_when_it_is_damaged(layout: Layout, text: str) -> None:
    layout.cluster_json.write_text(text)
    with pytest.raises(PlanError, match=r"cluster\.json is damaged"):
        layout.read_record()


@pytest.mark.parametrize("text", ["[node", "[node]\nid = 'node-1'\n"])
def test_node_configuration_is_refused_with_its_name_when_it_is_damaged(layout: Layout, text: str) -> None:
    write_all(layout)
    layout.config("node-1").write_text(text)
    with pytest.raises(PlanError, match=r"node-1/node\.toml"):
        layout.find_nodes()


def test_drain_is_that_of_the_most_patient_node(layout: Layout) -> None:
    assert layout.find_drain_seconds() == 0
    write_all(layout)
    assert layout.find_drain_seconds() == 0 + 30 + 15
    path = layout.config("node-3")
    path.write_text(
        path.read_text().replace("[http]", "[http]\nshutdown_timeout_seconds = 90\nstop_timeout_seconds = 7")
    )
    assert layout.find_drain_seconds() == 0 + 90 + 7


def test_log_begins_anew_when_it_has_grown_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "LOG_BYTES_MAX", 10)
    log = tmp_path / "log"
    for text in (b"x" * 11, b"fresh"):
        with private.open_log(log) as file:
            file.write(text)
    assert (log.read_bytes(), (tmp_path / "log.1").read_bytes()) == (b"fresh", b"x" * 11)


def test_log_tail_is_what_was_written_after_the_offset(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert private.read_tail(log) == ""
    log.write_text("old\nnew 1\nnew 2\n")
    assert private.read_tail(log, 4) == "new 1\nnew 2"
    assert private.read_tail(log, 4, lines_max=1) == "new 2"
    assert private.read_tail(log, 999) == "old\nnew 1\nnew 2"
