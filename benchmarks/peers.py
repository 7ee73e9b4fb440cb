"""The stores that Holdfast is measured beside: each started with its own files, and stopped again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cluster import open_cluster
from benchmarks.dialects import PlainPut, RegistryPush
from benchmarks.generator import Target
from repo_node.launch.ports import LOOPBACK, find_free_port
from tests.cluster.balancers import adapted

START_SECONDS_MAX = 20.0
NGINX_CONFIG = """\
user root;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000;
    server {{
        listen {host}:{port};
        root {directory}/files;
        location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
    }}
}}
"""
REGISTRY_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/registry}}, delete: {{enabled: true}}}}
http: {{addr: "{host}:{port}"}}
"""


class PeerMissing(Exception):
    """A program is not installed; the message says what is left out for want of it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running store: how it is reached, the roots of its processes, and what it does for an upload."""

    name: str
    target: Target
    pids: tuple[int, ...]
    keeps: str


def require(program: str, package: str) -> str:
    """Return the path of an installed program. Raises ``PeerMissing``."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise PeerMissing(f"{program} is not installed (Debian's package {package}): it is left out")
    return found


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """Run a server and yield its pid once it listens on ``port``. Raises ``PeerMissing`` when it does not."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerMissing(f"{command[0]} did not start: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


@contextmanager
def nginx(directory: Path) -> Iterator[Peer]:
    """Run nginx as a WebDAV server. Raises ``PeerMissing``."""
    program, port = require("nginx", "nginx-light"), find_free_port()
    (directory / "files").mkdir()
    file = directory / "nginx.conf"
    file.write_text(NGINX_CONFIG.format(directory=directory, host=LOOPBACK, port=port))
    command = [program, "-p", str(directory), "-c", str(file), "-g", "daemon off;"]
    with running(command, port, directory / "nginx.log") as pid:
        target = Target(f"http://{LOOPBACK}:{port}", "", dialect=PlainPut("/bench"))
        yield Peer("nginx WebDAV", target, (pid,), "1 copy, no digest, no fsync")


@contextmanager
def registry(directory: Path) -> Iterator[Peer]:
    """Run the container registry of the Go distribution. Raises ``PeerMissing``."""
    program, port = require("docker-registry", "docker-registry"), find_free_port()
    file = directory / "registry.yml"
    file.write_text(REGISTRY_CONFIG.format(directory=directory, host=LOOPBACK, port=port))
    with running([program, "serve", str(file)], port, directory / "registry.log") as pid:
        target = Target(f"http://{LOOPBACK}:{port}", "", dialect=RegistryPush("bench"))
        yield Peer("docker-registry", target, (pid,), "1 copy, sha256, no fsync")


@contextmanager
def holdfast(directory: Path, port: int | None, later: ExitStack) -> Iterator[list[Peer]]:
    """Run a cluster of three nodes; yield it, and once more as it is behind HAProxy where that is installed."""
    keeps = "2 copies, 3 digests, fsync"
    with open_cluster(directory, port, "token", later) as cluster, ExitStack() as stack:
        peers = [Peer("Holdfast", cluster.target, cluster.pids, keeps)]
        with suppress(PeerMissing):
            program, front = require("haproxy", "haproxy"), find_free_port()
            ports = [int(url.rpartition(":")[2]) for url in cluster.node_urls]
            made = [SimpleNamespace(scheme="http", host=LOOPBACK, port=each) for each in ports]
            nodes: Any = SimpleNamespace(nodes=made)
            file = directory / "haproxy.cfg"
            file.write_text(adapted("haproxy.cfg", nodes, front))
            log = directory / "haproxy.log"
            pid = stack.enter_context(running([program, "-db", "-f", str(file)], front, log))
            target = Target(f"http://{LOOPBACK}:{front}", cluster.authorization)
            peers.append(Peer("Holdfast, HAProxy", target, (*cluster.pids, pid), keeps))
        yield peers


@contextmanager
def open_peers(parent: Path, port: int | None, later: ExitStack) -> Iterator[tuple[list[Peer], list[str]]]:
    """Start every peer that is installed, side by side; yield them, and a sentence for each that is left out."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="peers-", dir=parent)).resolve()
    later.callback(shutil.rmtree, directory, ignore_errors=True)
    peers, missing = [], []
    with ExitStack() as stack:
        for open_peer in (nginx, registry):
            place = directory / open_peer.__name__
            place.mkdir()
            try:
                peers.append(stack.enter_context(open_peer(place)))
            except PeerMissing as error:
                missing.append(str(error))
        peers += stack.enter_context(holdfast(directory, port, later))
        if len({peer.name for peer in peers if peer.name.startswith("Holdfast")}) < 2:
            missing.append("haproxy is not installed (Debian's package haproxy): it is left out")
        yield peers, missing
