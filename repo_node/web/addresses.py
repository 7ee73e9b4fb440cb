"""Where a request comes from: who sent it, and the peer of its connection or what a configured proxy says of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp import web

from repo_node.config import IpNetwork
from repo_node.origin import Origin
from repo_node.web.context import REQUEST_ID, SERVICES, principal_of

IpAddress = IPv4Address | IPv6Address

FORWARDED_MAX = 64
"""Entries of X-Forwarded-For that are looked at, from the last."""

ADDRESS_CHARACTERS_MAX = 128
"""An entry that is longer is none: with its port and a zone's name an address has half of that."""


def origin_of(request: web.Request) -> Origin:
    """Return what is noted with whatever the request changes."""
    return Origin(principal_of(request).name, request[REQUEST_ID], client_address(request))


def client_address(request: web.Request) -> str | None:
    """Return the address of who sent the request, for records and for limits: nothing is allowed because of it.

    None when the connection is gone already.
    """
    peer, proxies = request.remote, request.app[SERVICES].http.trusted_proxies
    if peer is None or not proxies:
        return peer
    return address_behind(peer, request.headers.getall("X-Forwarded-For", ()), proxies)


def address_behind(peer: str, forwarded: Iterable[str], proxies: Sequence[IpNetwork]) -> str:
    """Return the last address that no trusted proxy has, going back from ``peer`` through X-Forwarded-For.

    Each proxy appends who it was asked by, so whatever stands before the first stranger is the stranger's own word.
    """
    address = parsed(peer)
    names = [name for line in forwarded for name in line.split(",")][-FORWARDED_MAX:]
    while address is not None and is_trusted(address, proxies):
        peer = str(address)
        address = parsed(names.pop()) if names else None
    return peer if address is None else str(address)


def is_trusted(address: IpAddress, proxies: Sequence[IpNetwork]) -> bool:
    return any(address in network for network in proxies)


def parsed(text: str) -> IpAddress | None:
    """Return an address, without the port that some proxies add; an IPv4 one that is written as IPv6, as IPv4."""
    return recalled(text) if len(text) <= ADDRESS_CHARACTERS_MAX else None


# Most requests come from the same few addresses, and to read one takes as long as the rest of what is noted of it.
@lru_cache(maxsize=1024)
def recalled(text: str) -> IpAddress | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
