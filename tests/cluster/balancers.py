"""The load balancers of config/, run as they are shipped but for their addresses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.processes import Cluster, free_ports
from tests.tools import require_tool

CONFIG = Path(__file__).parents[2] / "config"


def adapted(name: str, cluster: Cluster, port: int) -> str:
    """Return the shipped file with this cluster's addresses in place of those of ``holdfast up``."""
    text = (CONFIG / name).read_text()
    for number, node in enumerate(cluster.nodes, 1):
        text, count = re.subn(rf"127\.0\.0\.1:808{number}\b", f"{node.host}:{node.port}", text)
        assert count >= 1
    text, count = re.subn(r"^(\s+(?:bind|listen) )127\.0\.0\.1:809[01]\b", rf"\g<1>127.0.0.1:{port}", text, flags=re.M)
    assert count == 1
    if cluster.nodes[0].scheme == "https":
        text = (secured_haproxy if name == "haproxy.cfg" else secured_nginx)(text)
        text, count = re.subn("/etc/holdfast/tls/ca.crt", os.environ["CURL_CA_BUNDLE"], text)
        assert count >= 1
    return text


def secured_haproxy(text: str) -> str:
    """Do as a comment in the file tells those whose nodes have TLS."""
    (more,) = re.findall(r"^ +# (ssl verify .*)$", text, flags=re.M)
    text, count = re.subn(
        r"^( +server (node-\d) \S+)$", lambda found: f"{found[1]} {more.replace('node-1', found[2])}", text, flags=re.M
    )
    assert count == 6
    return text


def secured_nginx(text: str) -> str:
    text, count = re.subn(r"^ +proxy_pass http:.*$", "", text, flags=re.M)
    assert count == 1
    text, count = re.subn(r"^( +)# (proxy_\w+ .*;)$", r"\1\2", text, flags=re.M)
    assert count == 4
    return text


@contextmanager
def haproxy(cluster: Cluster, directory: Path) -> Iterator[str]:
    """Run HAProxy in front of ``cluster`` and yield its URL."""
    program = require_tool("haproxy", "the shipped config/haproxy.cfg cannot be tried")
    port = free_ports(1)[0]
    file = directory / "haproxy.cfg"
    file.write_text(adapted("haproxy.cfg", cluster, port))
    with running([program, "-db", "-f", str(file)], port, directory / "haproxy.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def nginx(cluster: Cluster, directory: Path) -> Iterator[str]:
    """Run nginx in front of ``cluster`` and yield its URL."""
    program = require_tool("nginx", "the shipped config/nginx.conf cannot be tried")
    port = free_ports(1)[0]
    file, log = directory / "nginx.conf", directory / "nginx.log"
    file.write_text(adapted("nginx.conf", cluster, port))
    main = f"daemon off; pid {directory}/nginx.pid; error_log {log} warn;"
    with running([program, "-p", str(directory), "-c", str(file), "-g", main], port, log):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for_port(process, port, log)
        yield
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(100):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"{process.args!r} does not listen on {port}")
