"""A Postgres URL: which servers it names, and what is required of the one a node works on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

PORT = "5432"
WRITABLE = ("read-write", "primary")
"""What ``target_session_attrs`` may ask for: a node writes, so a standby is of no use to it."""


class BadDsn(ValueError):
    """The URL cannot be used; the message says what would be right, without its password."""


@dataclass(frozen=True, slots=True)
class Dsn:
    """A checked URL. No ``servers`` (host and port): the URL leaves them to libpq's defaults and environment."""

    url: str
    servers: tuple[tuple[str, int], ...]
    target: str


def parse_dsn(url: str) -> Dsn:
    """Return what ``url`` says. Raises ``BadDsn``.

    Without ``target_session_attrs`` several servers mean that one of them takes writes (read-write); a single one must
    be no standby (primary), but may refuse writes for a while: reads go on.
    """
    try:
        parts = urlsplit(url)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    except ValueError as error:
        raise BadDsn(str(error)) from None
    if parts.scheme not in ("postgres", "postgresql"):
        raise BadDsn('write a Postgres URL, for example "postgresql://holdfast:secret@db.example:5432/holdfast"')
    written = unquote(parts.netloc.partition("@")[2] if "@" in parts.netloc else parts.netloc) or query.get("host", "")
    servers = parse_servers(written, query.get("port", ""))
    target = query.get("target_session_attrs", "read-write" if len(servers) > 1 else "primary")
    if target not in WRITABLE:
        raise BadDsn(f"target_session_attrs={target} can lead to a standby; leave it out, or write read-write")
    return Dsn(url, servers, target)


def parse_servers(written: str, ports: str) -> tuple[tuple[str, int], ...]:
    """Return host and port of each server in ``host:port,...``; ``ports`` are those of the query, for all or each."""
    hosts = written.split(",") if written else []
    given = (ports or os.environ.get("PGPORT") or PORT).split(",")
    if len(given) not in (1, len(hosts)):
        raise BadDsn(f"it names {len(hosts)} hosts and {len(given)} ports; give one port, or one for each host")
    if len(given) < len(hosts):
        given *= len(hosts)
    return tuple(parse_server(host, port) for host, port in zip(hosts, given, strict=True)) if hosts else ()


def parse_server(host: str, port: str) -> tuple[str, int]:
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise BadDsn("an IPv6 address stands in brackets, for example [::1]:5432")
        port = rest[1:] or port
    elif not host.startswith("/"):
        host, _, own = host.partition(":")
        port = own or port
    if not host:
        raise BadDsn("one of its hosts is empty; separate hosts by single commas")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise BadDsn("a port is a number from 1 to 65535")
    return host, int(port)


def name_server(server: tuple[str, int]) -> str:
    """Return how people write the address of a server."""
    host, port = server
    return f"[{host}]:{port}" if ":" in host else host if host.startswith("/") else f"{host}:{port}"
