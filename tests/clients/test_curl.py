"""curl, as build scripts use it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import Front
from tests.clients.recorder import Recorder
from tests.repo_node.archive_files import packed

CLIENT = "curl"
MARK = "holdfast-status:"


class Curl:
    """Runs curl with a netrc file, and tells the recorder what it did."""

    def __init__(self, front: Front, seen: Recorder, directory: Path) -> None:
        self.base = front.base
        self._seen = seen
        self._directory = directory
        netrc = directory / "netrc"
        netrc.write_text(f"machine 127.0.0.1 login admin password {front.password}\n")
        netrc.chmod(0o600)
        self._options = ["--netrc-file", str(netrc)]

    def run(self, path: str, *options: str, code: int = 0, data: bytes = b"", netrc: bool = True) -> tuple[int, bytes]:
        """Return the status of the last answer and what curl wrote; ``code`` is the exit status that is expected."""
        url = f"{self.base}/{path}"
        told = f"\n{MARK}%{{method}} %{{http_code}}\n"
        ran = subprocess.run(
            ["curl", "-sS", "-m", "60", "-g", *(self._options if netrc else ()), "-w", told, *options, url],
            input=data,
            capture_output=True,
            cwd=self._directory,
        )
        assert ran.returncode == code, ran.stderr.decode()
        body, _, last = ran.stdout.rpartition(f"\n{MARK}".encode())
        method, status = last.decode().split()
        self._seen.note(method, url, int(status))
        return int(status), body


@pytest.fixture
def curl(front: Front, seen: Recorder, tmp_path: Path) -> Curl:
    return Curl(front, seen, tmp_path)


@pytest.fixture
def large(tmp_path: Path) -> bytes:
    data = os.urandom(3 << 20)
    (tmp_path / "large").write_bytes(data)
    return data


def sums(data: bytes) -> list[str]:
    named = (f"X-Checksum-{name}: {hashlib.new(name.lower(), data).hexdigest()}" for name in ("Sha1", "Sha256", "Md5"))
    return [option for header in named for option in ("-H", header)]


def test_uploads(seen: Recorder, curl: Curl, folder: str, large: bytes) -> None:
    with seen.call("-T file, netrc"):
        assert curl.run(f"{folder}/large", "-T", "large")[0] == 201
    with seen.call("-T file -H X-Checksum-…"):
        assert curl.run(f"{folder}/large", "-T", "large", *sums(large))[0] == 201
        assert curl.run(f"{folder}/large", "-f", "-T", "large", *sums(b"other"), code=22)[0] == 409
    with seen.call("-X PUT -H 'X-Checksum-Deploy: true'"):
        deploy = ("-X", "PUT", "-H", "X-Checksum-Deploy: true", "-H")
        digest = hashlib.sha256(large).hexdigest()
        assert curl.run(f"{folder}/again", *deploy, f"X-Checksum-Sha256: {digest}")[0] == 201
        assert curl.run(f"{folder}/again", *deploy, f"X-Checksum-Sha256: {digest[::-1]}")[0] == 404
    with seen.call("-T - (chunked)"):
        assert curl.run(f"{folder}/piped", "-T", "-", data=large)[0] == 201
        assert curl.run(f"{folder}/piped")[1] == large
    with seen.call("--data-binary @file -X PUT"):
        assert curl.run(f"{folder}/data", "-X", "PUT", "--data-binary", "@large")[0] == 201
    with seen.call("-T file 'path;key=value'"):
        assert curl.run(f"{folder}/props;build=7;os=linux,mac", "-T", "large")[0] == 201
        assert b'"os": ["linux", "mac"]' in curl.run(f"api/storage/{folder}/props?properties")[1]
    with seen.call("-X PUT path/"):
        assert curl.run(f"{folder}/made/", "-X", "PUT")[0] == 201
    with seen.call("-T archive -H 'X-Explode-Archive: true'"):
        (curl._directory / "a.tgz").write_bytes(packed("tgz", {"in/side": b"content"}))
        assert curl.run(f"{folder}/a.tgz", "-T", "a.tgz", "-H", "X-Explode-Archive: true")[0] == 201
        assert curl.run(f"{folder}/in/side")[1] == b"content"


def test_downloads(seen: Recorder, curl: Curl, folder: str, large: bytes, tmp_path: Path) -> None:
    assert curl.run(f"{folder}/large", "-T", "large")[0] == 201
    with seen.call("-O, -I"):
        assert curl.run(f"{folder}/large")[1] == large
        assert (
            f"x-checksum-sha1: {hashlib.sha1(large).hexdigest()}"
            in curl.run(f"{folder}/large", "-I")[1].decode().lower()
        )
    with seen.call("-C - (resume)"):
        (tmp_path / "part").write_bytes(large[:1_000_000])
        assert curl.run(f"{folder}/large", "-C", "-", "-o", "part")[0] == 206
        assert (tmp_path / "part").read_bytes() == large
        (tmp_path / "part").write_bytes(large)
        assert curl.run(f"{folder}/large", "-C", "-", "-o", "part")[0] == 416
        assert (tmp_path / "part").read_bytes() == large
    with seen.call("-r first-last"):
        assert curl.run(f"{folder}/large", "-r", "1000-1999")[1] == large[1000:2000]
        assert curl.run(f"{folder}/large", "-r", "-5")[1] == large[-5:]
    with seen.call("--etag-save, --etag-compare, -z"):
        curl.run(f"{folder}/large", "--etag-save", "tag", "-o", "got")
        assert curl.run(f"{folder}/large", "--etag-compare", "tag", "-o", "not")[0] == 304
        assert curl.run(f"{folder}/large", "-R", "-o", "dated")[0] == 200
        assert curl.run(f"{folder}/large", "-z", "dated", "-o", "not")[0] == 304
    with seen.call("-f (exit status 22)"):
        assert curl.run(f"{folder}/none", "-f", code=22)[0] == 404


def test_credentials(seen: Recorder, curl: Curl, folder: str, front: Front) -> None:
    (curl._directory / "a").write_text("a")
    with seen.call("no credentials"):
        assert curl.run(f"{folder}/a", "-T", "a", netrc=False)[0] == 401
    token = curl.run("api/holdfast/tokens", "-d", '{"scopes": ["read", "write"]}')[1].decode().split('"token": "')[1]
    token = token.partition('"')[0]
    with seen.call("-H 'Authorization: Bearer token'"):
        assert curl.run(f"{folder}/a", "-T", "a", "-H", f"Authorization: Bearer {token}", netrc=False)[0] == 201
    with seen.call("-u user:token"):
        assert curl.run(f"{folder}/a", "-u", f"admin:{token}", netrc=False)[0] == 200
    with seen.call("-H 'X-JFrog-Art-Api: token'"):
        assert curl.run(f"{folder}/a", "-H", f"X-JFrog-Art-Api: {token}", netrc=False)[0] == 200


def test_deletions(seen: Recorder, curl: Curl, folder: str, large: bytes) -> None:
    curl.run(f"{folder}/a/b", "-T", "large")
    with seen.call("-X DELETE"):
        assert curl.run(f"{folder}/a/b", "-X", "DELETE")[0] == 204
        assert curl.run(f"{folder}/a/b", "-X", "DELETE")[0] == 404
        assert curl.run(f"{folder}/a", "-X", "DELETE")[0] == 204


def test_the_table_is_what_was_seen(settle: Callable[[], None]) -> None:
    settle()
