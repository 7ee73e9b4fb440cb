"""Where a request came from: what proxies say is believed of those that the configuration names, and only for records."""

from __future__ import annotations

from http.client import HTTPConnection
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.web.addresses import address_behind
from tests.repo_node.nodes import LOOPBACK, PASSWORD, PROXY, RunningCluster, basic, new_path

PROXIES = tuple(ip_network(text) for text in ("10.0.0.5", "10.1.0.0/24", "fd00:1::/64"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.5", [], "10.0.0.5"),
        ("10.0.0.5", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.5", ["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.5", ["6.6.6.6", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.5", ["6.6.6.6, 198.51.100.7, 10.1.0.9"], "198.51.100.7"),
        ("10.0.0.5", ["10.1.0.8, 10.1.0.9"], "10.1.0.8"),
        ("10.0.0.5", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.5", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("fd00:1::9", ["2001:0db8::0001"], "2001:db8::1"),
        ("::ffff:10.0.0.5", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("10.0.0.5", ["198.51.100.7, unknown"], "10.0.0.5"),
        ("10.0.0.5", ["198.51.100.7,"], "10.0.0.5"),
        ("10.0.0.5", ["<script>"], "10.0.0.5"),
    ],
)
def test_s14_the_client_is_the_last_address_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    assert address_behind(peer, forwarded, PROXIES) == client


@given(st.lists(st.text(max_size=40), max_size=5), st.ip_addresses(v=4).filter(lambda one: one not in PROXIES[1]))
def test_s14_nothing_a_client_sends_changes_what_its_proxy_says(forged: list[str], client: object) -> None:
    assert address_behind("10.1.0.1", [*forged, str(client)], PROXIES) == address_behind(
        "10.1.0.1", [str(client)], PROXIES
    )


def noted_for(cluster: RunningCluster, source: str, forwarded: str) -> tuple[str, str]:
    """Upload from ``source``; return the address in the event."""
    path = new_path()
    connection = HTTPConnection(LOOPBACK, cluster.first.port, timeout=30, source_address=(source, 0))
    headers = {"Authorization": basic("admin", PASSWORD), "X-Forwarded-For": forwarded}
    connection.request("PUT", path, b"x", headers)
    assert connection.getresponse().status == 201
    connection.close()
    [event] = cluster.sql(
        "SELECT host(address) AS at FROM events WHERE path = $1", path.removeprefix("/artifactory/generic-local/")
    )
    return str(event["at"])


def test_s14_an_event_tells_where_the_request_came_from(one: RunningCluster) -> None:
    assert noted_for(one, LOOPBACK, "198.51.100.7") == LOOPBACK
    assert noted_for(one, PROXY, "6.6.6.6, 198.51.100.7") == "198.51.100.7"
    assert noted_for(one, PROXY, "nonsense") == PROXY


def test_s14_a_forged_address_is_no_way_in(one: RunningCluster) -> None:
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip"):
        assert one.first.client().get(new_path(), **{name.replace("-", "_"): LOOPBACK}).status == 401
