"""S15: through either balancer, no request is read in two ways; S10: nor does any reach what is for nodes alone."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from repo_node import keys
from sharding import wire
from tests.cluster.balancers import haproxy, nginx
from tests.cluster.processes import PASSWORD, Cluster, cluster, curl
from tests.postgres import TestServer
from tests.repo_node.http import Client
from tests.repo_node.nodes import basic

HIDDEN = b"GET /artifactory/generic-local/hidden HTTP/1.1\r\nHost: hidden\r\nX: "
CHUNK = f"{len(HIDDEN):x}\r\n".encode() + HIDDEN + b"\r\n0\r\n\r\n"
LENGTH = f"Content-Length: {len(HIDDEN) + 5}"
CASES: dict[str, tuple[list[str], bytes]] = {
    "length and chunks": ([LENGTH, "Transfer-Encoding: chunked"], b"0\r\n\r\n" + HIDDEN),
    "chunks and length": (["Content-Length: 4", "Transfer-Encoding: chunked"], CHUNK),
    "chunks by a name with a space": ([LENGTH, "Transfer-Encoding : chunked"], b"0\r\n\r\n" + HIDDEN),
    "chunks behind a tab": ([LENGTH, "Transfer-Encoding:\tchunked"], b"0\r\n\r\n" + HIDDEN),
    "chunks behind a vertical tab": ([LENGTH, "Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n" + HIDDEN),
    "almost chunks": ([LENGTH, "Transfer-Encoding: xchunked"], b"0\r\n\r\n" + HIDDEN),
    "quoted chunks": ([LENGTH, 'Transfer-Encoding: "chunked"'], b"0\r\n\r\n" + HIDDEN),
    "chunks, then not": ([LENGTH, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"], b"0\r\n\r\n" + HIDDEN),
    "chunks in a list": ([LENGTH, "Transfer-Encoding: identity, chunked"], b"0\r\n\r\n" + HIDDEN),
    "chunks behind a bare line feed": ([LENGTH, "X: y\nTransfer-Encoding: chunked"], b"0\r\n\r\n" + HIDDEN),
    "chunks on a folded line": ([LENGTH, "Transfer-Encoding:\r\n chunked"], b"0\r\n\r\n" + HIDDEN),
    "two lengths": (["Content-Length: 0", LENGTH], b"0\r\n\r\n" + HIDDEN),
    "a list of lengths": ([f"{LENGTH}, 0"], b"0\r\n\r\n" + HIDDEN),
    "a signed length": ([LENGTH.replace(": ", ": +")], b"0\r\n\r\n" + HIDDEN),
    "an octal length": (["Content-Length: 010"], b"0\r\n\r\n" + HIDDEN),
    "a negative length": (["Content-Length: -1"], HIDDEN),
    "a chunk of odd size": (["Transfer-Encoding: chunked"], b"0x5\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    "a chunk ended by a line feed": (["Transfer-Encoding: chunked"], b"5;\nhello\r\n0\r\n\r\n" + HIDDEN),
    "a chunk too large to count": (["Transfer-Encoding: chunked"], b"10000000000000005\r\nhello\r\n0\r\n\r\n" + HIDDEN),
    "a trailer that is a length": (["Transfer-Encoding: chunked"], b"0\r\n" + LENGTH.encode() + b"\r\n\r\n" + HIDDEN),
    "two hosts": (["Host: another", LENGTH], b"0\r\n\r\n" + HIDDEN),
}


@pytest.fixture(scope="module")
def balanced(
    postgres: TestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, dict[str, Client]]]:
    """Two nodes, and what is in front of them."""
    directory = tmp_path_factory.mktemp("smuggling")
    with ExitStack() as stack:
        dsn = stack.enter_context(postgres.database(postgres.template()))
        made = stack.enter_context(cluster(directory / "cluster", dsn, nodes=2))
        fronts = {}
        for run in (haproxy, nginx):
            (directory / run.__name__).mkdir()
            url = stack.enter_context(run(made, directory / run.__name__))
            fronts[run.__name__] = Client("127.0.0.1", int(url.rpartition(":")[2]), basic("admin", PASSWORD))
        for number in range(4):
            assert fronts["nginx"].put(f"/artifactory/generic-local/{number}", str(number).encode()).status == 201
        yield made, fronts


def send(front: Client, headers: list[str], rest: bytes) -> bytes:
    """Send a PUT with these headers, and return what comes back soon."""
    authorization = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    head = ["PUT /artifactory/generic-local/open HTTP/1.1", "Host: front", f"Authorization: Basic {authorization}"]
    with socket.create_connection((front.host, front.port), timeout=0.1) as connection, suppress(OSError):
        connection.sendall("\r\n".join([*head, *headers, "", ""]).encode() + rest)
        answer = b""
        with suppress(TimeoutError):
            while came := connection.recv(65536):
                answer += came
        return answer
    return b""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("balancer", ["haproxy", "nginx"])
def test_s15_what_could_be_read_in_two_ways_changes_no_answer_to_others(
    balanced: tuple[Cluster, dict[str, Client]], balancer: str, case: str
) -> None:
    front = balanced[1][balancer]
    answer = send(front, *CASES[case])
    assert not answer or answer.startswith(b"HTTP/1.")
    assert not any(number in answer for number in (b" 500 ", b" 502 "))
    for number in range(4):
        assert front.get(f"/artifactory/generic-local/{number}").body == str(number).encode()


@pytest.mark.parametrize("balancer", ["haproxy", "nginx", "none"])
def test_s10_no_balancer_leads_to_what_is_for_nodes_alone(
    balanced: tuple[Cluster, dict[str, Client]], balancer: str
) -> None:
    made, fronts = balanced
    front = fronts.get(balancer) or Client("127.0.0.1", made.nodes[0].port)
    token = keys.derive(bytes.fromhex(made.key_file.read_text()), wire.TOKEN_PURPOSE)
    for path in ("/internal/v1/node", "/internal/v1/calls", "//internal/v1/node", "/%69nternal/v1/node"):
        headers = {"Authorization": f"{wire.AUTHORIZATION_SCHEME} {token}", "X-Holdfast-Node": "node-1"}
        answer = front.request("GET", path, headers=headers)
        assert answer.status in (400, 401, 404) and b"incarnation" not in answer.body
    assert curl(f"http://127.0.0.1:{made.nodes[0].internal_port}/internal/v1/node")[0] == 401, "nor do credentials"
