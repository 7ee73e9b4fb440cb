"""A folder as one archive: every kind is read back by Python's own readers and by the tools people have."""

from __future__ import annotations

import gzip
import hashlib
import io
import secrets
import subprocess
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.archives import ArchiveWriter, archive_writer
from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of, random_bytes

KINDS = ("zip", "tar", "tar.gz", "tgz")
FILES = {
    "a.txt": b"content",
    "empty": b"",
    "sub/ünï/" + "x" * 150: b"y" * 1000,
    "sub/large": random_bytes(3 << 20),
}
NAMES = st.lists(st.text("abcé. ", min_size=1, max_size=60), min_size=1, max_size=4).map("/".join)


def unpacked(kind: str, data: bytes) -> dict[str, bytes]:
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            return {info.filename: archive.read(info) for info in archive.infolist()}
    raw = data if kind == "tar" else gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert all(member.isreg() for member in archive)
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def packed(archive: ArchiveWriter, files: dict[str, bytes], piece_bytes: int) -> bytes:
    written = b""
    for name, data in files.items():
        written += archive.begin(name, len(data), datetime(2026, 1, 2, tzinfo=UTC))
        for start in range(0, len(data), piece_bytes):
            written += archive.data(memoryview(data)[start : start + piece_bytes])
        written += archive.end()
    return written + archive.close()


@given(st.sampled_from(KINDS), st.dictionaries(NAMES, st.binary(max_size=2000), max_size=5), st.integers(1, 700))
def test_what_goes_in_comes_out(kind: str, files: dict[str, bytes], piece_bytes: int) -> None:
    assert unpacked(kind, packed(archive_writer(kind), files, piece_bytes)) == files


# ---------------------------------------------------------------- over REST


@pytest.fixture(scope="module")
def folder(one: RunningCluster) -> str:
    from urllib.parse import quote

    path = f"generic-local/{secrets.token_hex(6)}"
    for name, data in FILES.items():
        assert one.admin.put(f"/artifactory/{path}/{quote(name)}", data).status == 201
    one.admin.put(f"/artifactory/{path}-beside/no", b"no")
    return path


def download(one: RunningCluster, path: str, query: str) -> Answer:
    return one.admin.get(f"/artifactory/api/archive/download/{path}?{query}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_whole(one: RunningCluster, folder: str, kind: str) -> None:
    answer = download(one, folder, f"archiveType={kind}")
    assert answer.status == 200
    assert answer.headers["Content-Disposition"].endswith(f"{folder.rpartition('/')[2]}.{kind}")
    assert unpacked(kind, answer.body) == FILES


def test_the_tools_that_people_have_read_them(one: RunningCluster, folder: str, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(download(one, folder, "archiveType=tgz").body)
    subprocess.run(["tar", "-xzf", "a.tgz"], cwd=tmp_path, check=True)
    for name, data in FILES.items():
        assert (tmp_path / name).read_bytes() == data


def test_checksums_come_beside_the_files(one: RunningCluster, folder: str) -> None:
    found = unpacked("tar", download(one, folder, "archiveType=tar&includeChecksumFiles=1").body)
    for kind in ("sha256", "sha1", "md5"):
        assert found[f"sub/large.{kind}"] == hashlib.new(kind, FILES["sub/large"]).hexdigest().encode()
    assert len(found) == 4 * len(FILES)


def test_a_repository_and_an_empty_folder_are_sent_too(one: RunningCluster) -> None:
    one.admin.put_json("/artifactory/api/repositories/archive-root", {})
    one.admin.put("/artifactory/archive-root/f/a", b"a")
    one.admin.put("/artifactory/archive-root/none/")
    assert unpacked("zip", download(one, "archive-root", "archiveType=zip").body) == {"f/a": b"a"}
    for kind in KINDS:
        assert unpacked(kind, download(one, "archive-root/none", f"archiveType={kind}").body) == {}


def test_what_cannot_be_sent_is_refused(one: RunningCluster, folder: str) -> None:
    for query in ("", "archiveType=rar", "archiveType=zip&includeChecksumFiles=x"):
        assert errors_of(download(one, folder, query))[0] == 400
    assert errors_of(download(one, f"{folder}/a.txt", "archiveType=zip"))[0] == 400
    assert errors_of(download(one, f"{folder}/none", "archiveType=zip"))[0] == 404
    assert (
        errors_of(one.with_token("write").get(f"/artifactory/api/archive/download/{folder}?archiveType=zip"))[0] == 403
    )


@pytest.mark.parametrize("limit", [{"folder_download_items_max": 3}, {"folder_download_bytes_max": 1 << 20}])
def test_a_folder_beyond_the_limits_is_refused(one: RunningCluster, folder: str, limit: dict[str, int]) -> None:
    with one.settings(**limit):
        assert errors_of(download(one, folder, "archiveType=tar"))[0] == 413


def test_a_copy_that_cannot_be_read_breaks_the_answer_off(one: RunningCluster) -> None:
    import http.client

    path, data = f"generic-local/{secrets.token_hex(6)}", random_bytes(2 << 20)
    one.admin.put(f"/artifactory/{path}/a-first", b"first")
    one.admin.put(f"/artifactory/{path}/b-lost", data)
    sha256 = hashlib.sha256(data).hexdigest()
    copies = [file for file in one.files() if file.name.startswith(sha256)]
    kept = [(file, file.read_bytes()) for file in copies]
    for file in copies:
        file.unlink()
    try:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            download(one, path, "archiveType=tar")
    finally:
        for file, content in kept:
            file.write_bytes(content)
