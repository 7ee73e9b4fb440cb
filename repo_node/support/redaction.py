"""What of a node's configuration may be shown, and secrets taken out of any text.

The configuration is shown by a list of what may be: a field that nobody has thought about is hidden. Of text such as
logs there is no such list. Nothing secret should ever get there; what looks like a secret, or is one that this process
knows, is taken out all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from pydantic import BaseModel

from repo_node import keys
from repo_node.auth.tokens import Kind
from repo_node.config import NodeConfig
from repo_node.dsn import name_server, parse_dsn
from repo_node.settings import Settings
from sharding import wire

HIDDEN = "(hidden)"
SECRET_CHARACTERS_MIN = 4
"""A shorter one is no secret, and is in every word."""

SHOWN: Mapping[str, frozenset[str]] = {
    "NodeSection": frozenset({"id", "zone", "workers"}),
    "DatabaseSection": frozenset(
        {
            "pool_connections_max",
            "look_ups_per_round_trip_max",
            "connect_timeout_seconds",
            "statement_timeout_seconds",
            "start_timeout_seconds",
        }
    ),
    "HttpSection": frozenset(
        {
            "listen",
            "shared_listen",
            "metrics_listen",
            "trusted_proxies",
            "header_timeout_seconds",
            "idle_timeout_seconds",
            "keepalive_timeout_seconds",
            "rate_bytes_per_second_min",
            "rate_window_seconds",
            "connections_max",
            "shutdown_timeout_seconds",
            "drain_notice_seconds",
            "stop_timeout_seconds",
        }
    ),
    "InternalSection": frozenset(
        {
            "listen",
            "call_timeout_seconds",
            "stall_timeout_seconds",
            "calls_per_shard_max",
            "failures_to_open",
            "open_seconds",
        }
    ),
    "ShardSection": frozenset({"path", "weight", "reserve_bytes", "cached_bytes_max", "threads"}),
    "LogSection": frozenset({"format", "level", "kept_bytes_max"}),
    "TlsSection": frozenset({"certificate_file"}),
    "PeerTlsSection": frozenset({"certificate_file", "ca_file", "crl_file", "mode"}),
}
"""The fields whose value is shown as it is, by the class of their section."""

URLS = frozenset({"public_url", "advertise_url"})
"""Shown without a user and a password, which they may have."""

SETTINGS_SHOWN = frozenset({"gc_cron", "trash_cron", "backup_cron", "reconcile_cron", "read_only_reason"})
"""Settings that are text and shown; numbers and switches always are."""

DSN_SHOWN = frozenset({"sslmode", "target_session_attrs", "connect_timeout", "application_name"})

LIKE_SECRETS = (
    rf"(?:{'|'.join(Kind)})[0-9A-Za-z]+",
    r"(?<=://)[^/\s@]{1,512}(?=@)",
    r"(?i:(?<=bearer )|(?<=basic )|(?<=digest ))[^\s\"',;]{6,}",
    r"(?i:(?<=[?&;]token=)|(?<=[?&;]access_token=)|(?<=password=)|(?<=passwd=)|(?<=secret=)|(?<=api_key=)|(?<=apikey=))"
    r"[^\s\"'&;,]+",
    r"(?i:(?<=\"password\": \")|(?<=\"secret\": \")|(?<=\"token\": \")|(?<=\"access_token\": \")|(?<=\"api_key\": \"))"
    r"(?:[^\"\\]|\\.)+",
)


def shown_configuration(config: NodeConfig) -> dict[str, Any]:
    """Return a node's configuration as far as it may be shown."""
    document = shown_section(config)
    document["database"]["dsn"] = shown_dsn(config.database.dsn)
    return document


def shown_section(section: BaseModel) -> dict[str, Any]:
    shown = SHOWN.get(type(section).__name__, frozenset())
    return {name: shown_value(name, value, shown) for name, value in section}


def shown_value(name: str, value: Any, shown: frozenset[str]) -> Any:
    if isinstance(value, BaseModel) and name not in shown:
        return shown_section(value)
    if isinstance(value, tuple) and value and all(isinstance(one, BaseModel) for one in value):
        return [shown_section(one) for one in value]
    if name in URLS and isinstance(value, str):
        return without_user(value)
    if value is None:
        return None
    if name not in shown:
        return HIDDEN
    if isinstance(value, tuple):
        return [str(one) for one in value]
    return value if isinstance(value, bool | int | float) else str(value)


def without_user(url: str) -> str:
    """Return ``url`` without what stands before its host."""
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{HIDDEN}@{host}" if at else host))


def shown_dsn(dsn: str) -> dict[str, Any]:
    """Return the servers and the database of a DSN, and the parameters that may be shown."""
    parts = urlsplit(dsn)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return {
        "servers": [name_server(one) for one in parse_dsn(dsn).servers],
        "database": unquote(parts.path.lstrip("/")),
        "parameters": {name: value if name in DSN_SHOWN else HIDDEN for name, value in query.items()},
    }


def shown_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were set, as far as they may be shown; those of a newer release may be anything."""
    return {
        key: value
        if (key in Settings.model_fields and not isinstance(value, str | list | dict)) or key in SETTINGS_SHOWN
        else HIDDEN
        for key, value in stored.items()
    }


def secrets_of(config: NodeConfig) -> set[str]:
    """Return the secrets that a node knows, in the forms in which they may be written."""
    parts = urlsplit(config.database.dsn)
    given = {parts.password or "", *parse_qs(parts.query).get("password", [])}
    plain = {unquote(one) for one in given} | given
    found = plain | {quote(one, safe="") for one in plain} | {json.dumps(one)[1:-1] for one in plain}
    found |= {json.dumps(one, ensure_ascii=False)[1:-1] for one in plain}
    for key in (config.cluster_key, *config.accepted_keys):
        found |= {key.hex(), key.hex().upper(), keys.derive(key, wire.TOKEN_PURPOSE)}
    return found


SIGNS = (*Kind, "://", "bearer ", "basic ", "digest ", "token", "passw", "secret", "api_key", "apikey")
"""Without any of these, in small letters, a line has nothing that looks like a secret: a comparison costs little."""


class Redaction:
    """Takes secrets out of text: those it is told of, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted((one for one in secrets if len(one) >= SECRET_CHARACTERS_MIN), key=len, reverse=True)
        self._signs = (*SIGNS, *{one.lower() for one in known})
        self._pattern = re.compile("|".join([*map(re.escape, known), *LIKE_SECRETS]))

    def clean(self, text: str) -> str:
        """Return ``text`` without secrets. Line by line: a call of the pattern is slow, and holds the interpreter."""
        return "".join([self._clean_line(line) for line in text.splitlines(keepends=True)])

    def to_text(self, document: Any) -> str:
        """Return a document as JSON that people read, without secrets."""
        return self.clean(json.dumps(document, indent=2, default=str) + "\n")

    def _clean_line(self, line: str) -> str:
        lowered = line.lower()
        return self._pattern.sub(HIDDEN, line) if any(sign in lowered for sign in self._signs) else line
