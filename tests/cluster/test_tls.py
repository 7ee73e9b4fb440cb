"""Three nodes with TLS for clients and mutual TLS between themselves (S10, S35)."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from repo_node import keys
from sharding import wire
from tests.certificates import Authority, Pair
from tests.cluster.balancers import haproxy, nginx
from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.processes import Cluster, NodeProcess, curl, is_ready, set_password, status, until, wait_until
from tests.postgres import TestServer, run_apart

LONG = 5_000_000
ENDS = "holdfast_certificate_expiry_timestamp_seconds"


@dataclass
class Secured:
    """A cluster, its authority, and the certificates that its nodes have on disk."""

    cluster: Cluster
    authority: Authority
    pairs: list[Pair]

    def client(self, **options: object) -> LedgerClient:
        return LedgerClient([self.cluster.url], authority=self.authority.certificate, **options)  # type: ignore[arg-type]

    def renew(self, number: int) -> None:
        """Replace the certificate of one node."""
        self.pairs[number].replace(certificate_of(self.authority, self.cluster.nodes[number].id))


def certificate_of(authority: Authority, node: str, **options: object) -> Pair:
    return authority.pair(node, "localhost", "holdfast", "IP:127.0.0.1", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def secured(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Three nodes in three zones, the first of two processes. Curl believes their authority, and no other."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory / "ca")
    with postgres.database(postgres.template()) as dsn, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURL_CA_BUNDLE", str(authority.certificate))
        run_apart(set_password(dsn))
        made = Secured(Cluster(directory / "cluster", dsn), authority, [])
        for number in (1, 2, 3):
            pair = certificate_of(authority, f"node-{number}")
            made.pairs.append(pair)
            files = f'certificate_file = "{pair.certificate}"\nkey_file = "{pair.key}"'
            made.cluster.add_node(
                http=f"[http.tls]\n{files}",
                internal=f'[internal.tls]\n{files}\nca_file = "{authority.certificate}"',
                workers=2 if number == 1 else 1,
            )
        try:
            made.cluster.start()
            yield made
        finally:
            made.cluster.stop()


def shown_by(port: int) -> bytes:
    """Return the certificate that a listener for clients shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""


def asked_of_peer(
    secured: Secured, node: NodeProcess, pair: Pair | None, *, said: str = "node-2", authorization: str | None = None
) -> int:
    """Ask who is there on the internal listener, as a node would; return the status, 0 when the handshake failed."""
    made = secured.cluster
    token = keys.derive(bytes.fromhex(made.key_file.read_text()), wire.TOKEN_PURPOSE)
    cluster_id = str(made.query("SELECT cluster_id FROM cluster")[0]["cluster_id"])
    context = ssl.create_default_context(cafile=secured.authority.certificate)
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    head = (
        f"GET {wire.PREFIX}/node HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization or f'Holdfast {token}'}\r\n"
        f"{wire.CLUSTER_HEADER}: {cluster_id}\r\n{wire.NODE_HEADER}: {said}\r\nConnection: close\r\n\r\n"
    )
    try:
        with (
            socket.create_connection(("127.0.0.1", node.internal_port), 10) as plain,
            context.wrap_socket(plain, server_hostname=node.id) as secure,
        ):
            secure.sendall(head.encode())
            return int(secure.recv(65536).split(b" ")[1])
    except (ssl.SSLError, ConnectionError, IndexError):
        return 0


def test_s35_bytes_of_every_length_go_in_and_out_with_tls_between_all(secured: Secured, tmp_path: Path) -> None:
    made = secured.cluster
    for node, other in zip(made.nodes, made.nodes[1:] + made.nodes[:1], strict=True):
        for size in (0, 100_000, LONG):
            source = tmp_path / f"{node.id}-{size}"
            source.write_bytes(random.randbytes(size))
            path = f"artifactory/generic-local/{source.name}"
            code, body = curl("-T", str(source), f"{node.url}/{path}")
            assert code == 201
            assert json.loads(body)["downloadUri"] == f"{node.url}/{path}"
            for reader in (node, other):
                assert curl(f"{reader.url}/{path}") == (200, source.read_bytes())
    chunked = tmp_path / "chunked"
    chunked.write_bytes(random.randbytes(LONG))
    assert (
        curl("-H", "Transfer-Encoding: chunked", "-T", str(chunked), f"{made.url}/artifactory/generic-local/c")[0]
        == 201
    )
    assert curl(f"{made.url}/artifactory/generic-local/c") == (200, chunked.read_bytes())
    urls = made.query("SELECT url, internal_url FROM nodes")
    assert all(url.startswith("https://") for row in urls for url in row)


def test_s10_without_tls_nothing_is_answered_on_either_listener(secured: Secured) -> None:
    node = secured.cluster.nodes[0]
    for port in (node.port, node.internal_port, secured.cluster.front_port):
        assert curl(f"http://127.0.0.1:{port}/artifactory/api/system/ping", wait_seconds=5)[0] == 0


def test_s10_the_internal_listener_wants_the_certificate_of_the_node_that_calls(
    secured: Secured, tmp_path: Path
) -> None:
    node, authority = secured.cluster.nodes[0], secured.authority
    foreign = Authority(tmp_path / "foreign", "foreign")
    assert asked_of_peer(secured, node, secured.pairs[1]) == 200
    assert asked_of_peer(secured, node, None) == 0
    assert asked_of_peer(secured, node, foreign.pair("node-2")) == 0
    assert asked_of_peer(secured, node, authority.pair("node-2", days=-1)) == 0
    assert asked_of_peer(secured, node, authority.pair("node-2", usage="serverAuth")) == 0
    assert asked_of_peer(secured, node, secured.pairs[2]) == 403  # its name is another than it says
    assert asked_of_peer(secured, node, authority.pair("node-9"), said="node-9") == 503  # no node of the cluster
    assert asked_of_peer(secured, node, secured.pairs[1], authorization="Bearer x") == 401


def test_s10_the_public_listener_has_no_internal_route(secured: Secured) -> None:
    made = secured.cluster
    token = keys.derive(bytes.fromhex(made.key_file.read_text()), wire.TOKEN_PURPOSE)
    for url in (made.url, *(node.url for node in made.nodes)):
        for headers in ((), ("-H", f"Authorization: Holdfast {token}", "--cert", str(secured.pairs[1].certificate))):
            key = ("--key", str(secured.pairs[1].key)) if headers else ()
            assert curl(*headers, *key, f"{url}{wire.PREFIX}/node")[0] in (401, 404)


def test_s35_old_protocols_and_ciphers_are_refused(secured: Secured) -> None:
    url = f"{secured.cluster.nodes[0].url}/artifactory/api/system/ping"
    assert curl("--tlsv1.2", "--tls-max", "1.2", url)[0] == 200
    assert curl("--tlsv1.3", url)[0] == 200
    assert curl("--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0", url)[0] == 0
    assert curl("--tls-max", "1.2", "--ciphers", "AES128-SHA", url)[0] == 0


async def test_s35_certificates_are_renewed_under_load_without_an_error(secured: Secured) -> None:
    made = secured.cluster
    before = [shown_by(node.port) for node in made.nodes]

    async def renew_all() -> None:
        await asyncio.sleep(1)
        for number in range(3):
            await asyncio.to_thread(secured.renew, number)
        for node, old in zip(made.nodes, before, strict=True):
            # More than once: a node of two processes has two who must have noticed.
            for _ in range(4):
                await until(lambda node=node, old=old: shown_by(node.port) != old, "the new certificate", 15)  # type: ignore[misc]
        await asyncio.sleep(1)

    async with secured.client(retries=0, folder="renewed") as client:
        await under_load(client, renew_all, workers=2)
        await client.verify()
    assert (client.ledger.failures, client.ledger.wrong) == ({}, [])
    assert len(client.ledger.acknowledged) > 20


def test_s35_a_broken_pair_is_refused_and_the_old_one_stays(secured: Secured) -> None:
    node, pair = secured.cluster.nodes[1], secured.pairs[1]
    old, key = shown_by(node.port), pair.key.read_bytes()
    pair.key.write_bytes(secured.pairs[2].key.read_bytes())
    refused = "a changed certificate cannot be used"
    wait_until(lambda: refused in node.log.read_text(), "the log to tell of it", 15)
    line = next(line for line in node.log.read_text().splitlines() if refused in line)
    assert "tls.key_file" in line and "is not the key of the certificate" in line
    assert shown_by(node.port) == old and is_ready(node)
    pair.key.write_bytes(key)


def test_each_node_tells_when_its_certificates_end(secured: Secured) -> None:
    for node in secured.cluster.nodes:
        text = curl(f"{node.url}/metrics")[1].decode()
        lines = [line for line in text.splitlines() if line.startswith(ENDS)]
        assert {line.split("{")[1].split("}")[0] for line in lines} == {'listener="http"', 'listener="internal"'}
        assert "a certificate ends soon" not in node.log.read_text()


@pytest.mark.parametrize("balancer", [haproxy, nginx], ids=["haproxy", "nginx"])
def test_a_balancer_reaches_nodes_with_tls(
    secured: Secured, tmp_path: Path, balancer: Callable[[Cluster, Path], AbstractContextManager[str]]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.randbytes(LONG))
    with balancer(secured.cluster, tmp_path) as url:
        target = f"{url}/artifactory/generic-local/through"
        wait_until(lambda: curl("-T", str(source), target)[0] == 201, "the balancer to see the nodes", 10)
        assert curl(target) == (200, source.read_bytes())


async def test_a_killed_node_costs_nothing_acknowledged_with_tls(secured: Secured) -> None:
    made = secured.cluster
    victim = made.nodes[2]

    async def kill_and_restart() -> None:
        await asyncio.sleep(1)
        victim.kill()
        await asyncio.sleep(2)
        victim.start()
        await until(lambda: is_ready(victim), "the killed node to come back", 30)

    async with secured.client(folder="killed") as client:
        await under_load(client, kill_and_restart, workers=2)
        await client.verify()
        await until(made.is_whole, "the nodes to know one another again", 15)
    assert client.ledger.wrong == []
    assert all(one["up"] for one in status(made.nodes[0])["nodes"])
