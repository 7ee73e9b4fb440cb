"""What of a configuration is shown, and what is taken out of text."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from repo_node import config as sections
from repo_node import keys
from repo_node.auth.tokens import new_secret
from repo_node.config import NodeConfig, PeerTlsSection, Section, TlsSection
from repo_node.settings import Settings
from repo_node.support.redaction import (
    HIDDEN,
    SETTINGS_SHOWN,
    SHOWN,
    Redaction,
    secrets_of,
    shown_configuration,
    shown_settings,
)
from sharding import wire
from tests.repo_node.nodes import CLUSTER_KEY, configure

DSN = "postgresql://holdfast:pa%2Fss-canary@db-1.example:5432,db-2.example:5433/holdfast?sslmode=verify-full&sslkey=/k.pem"
HIDDEN_FIELDS = {
    "NodeSection": {"cluster_key_file", "accepted_key_files"},
    "TlsSection": {"key_file"},
    "PeerTlsSection": {"key_file"},
}
ELSEWHERE_FIELDS = {
    "DatabaseSection": {"dsn"},
    "HttpSection": {"public_url", "tls"},
    "InternalSection": {"advertise_url", "tls"},
}


def configured(tmp_path: Path) -> NodeConfig:
    tls = PeerTlsSection(
        certificate_file=tmp_path / "c.pem", key_file=tmp_path / "secret-key.pem", ca_file=tmp_path / "ca"
    )
    return configure(
        DSN,
        tmp_path,
        http={
            "public_url": "https://someone:url-canary@files.example",
            "tls": TlsSection(certificate_file=tmp_path / "c.pem", key_file=tmp_path / "secret-key.pem"),
        },
        internal={"tls": tls, "advertise_url": "https://me:url-canary@10.0.0.1:8181"},
    )


@pytest.mark.parametrize(
    "section",
    [one for one in vars(sections).values() if isinstance(one, type) and issubclass(one, Section)],
    ids=lambda one: one.__name__,
)
def test_every_field_of_a_configuration_is_shown_or_hidden_on_purpose(section: type[BaseModel]) -> None:
    name = section.__name__
    if name in ("Section", "NodeConfig"):
        return
    decided = SHOWN[name] | HIDDEN_FIELDS.get(name, set()) | ELSEWHERE_FIELDS.get(name, set())
    assert set(section.model_fields) == decided


def test_a_configuration_is_shown_without_its_secrets(tmp_path: Path) -> None:
    shown = shown_configuration(configured(tmp_path))
    text = json.dumps(shown)
    for secret in ("ss-canary", "url-canary", "secret-key.pem", "/k.pem", CLUSTER_KEY.hex()):
        assert secret not in text, secret
    assert shown["database"]["dsn"] == {
        "servers": ["db-1.example:5432", "db-2.example:5433"],
        "database": "holdfast",
        "parameters": {"sslmode": "verify-full", "sslkey": HIDDEN},
    }
    assert shown["http"]["public_url"] == f"https://{HIDDEN}@files.example"
    assert shown["http"]["trusted_proxies"] == ["127.0.0.2/32"]
    assert shown["shards"][0]["path"] == str(tmp_path / "node-1" / "shard-1")
    assert shown["internal"]["tls"]["mode"] == "required" and shown["node"]["cluster_key_file"] == HIDDEN


def test_settings_are_shown_where_they_are_known_to_be_no_secret() -> None:
    stored = {"redundancy": 3, "anonymous_access": True, "gc_cron": "0 3 * * *", "webhook_secret": "x", "of_later": 7}
    assert shown_settings(stored) == stored | {"webhook_secret": HIDDEN, "of_later": HIDDEN}
    texts = {key for key, field in Settings.model_fields.items() if isinstance(field.default, str)}
    assert texts == SETTINGS_SHOWN, "a setting that is text is shown only on purpose"


def test_the_secrets_that_a_node_knows_go_in_every_form(tmp_path: Path) -> None:
    redaction = Redaction(secrets_of(configured(tmp_path)))
    text = f"a {DSN} b pa/ss-canary c {CLUSTER_KEY.hex()} d {CLUSTER_KEY.hex().upper()} e"
    cleaned = redaction.clean(text)
    assert "canary" not in cleaned and CLUSTER_KEY.hex() not in cleaned.lower()
    assert cleaned.startswith("a postgresql://") and cleaned.endswith(" e")


def test_the_keys_that_a_node_accepts_besides_its_own_are_secrets_too(tmp_path: Path) -> None:
    before = bytes(range(100, 132))
    config = configured(tmp_path).model_copy(update={"accepted_keys": (before,)})
    redaction = Redaction(secrets_of(config))
    for secret in (before.hex(), before.hex().upper(), keys.derive(before, wire.TOKEN_PURPOSE)):
        assert redaction.clean(f"key {secret}.") == f"key {HIDDEN}."


def test_a_password_goes_as_a_log_of_json_writes_it_too(tmp_path: Path) -> None:
    config = configured(tmp_path)
    dsn = 'postgresql://holdfast:b%C3%A4d"ca\\nary@db-1.example/holdfast'
    database = config.database.model_copy(update={"dsn": dsn})
    redaction = Redaction(secrets_of(config.model_copy(update={"database": database})))
    for ascii_only in (True, False):
        line = json.dumps({"cause": 'bäd"ca\\nary'}, ensure_ascii=ascii_only)
        assert redaction.clean(line) == json.dumps({"cause": HIDDEN})


SECRET = st.text(string.ascii_letters + string.digits, min_size=8, max_size=40)
PLACES = [
    "Authorization: Bearer {}", "authorization: basic {}", "GET /x?token={}&y=1", "/x?a=1&access_token={}", "http://u:{}@host/x",
    '{{"password": "{}"}}', '{{"a": 1, "token": "{}", "b": 2}}', "password={} rest", "secret={}", "api_key={};",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@given(secret=SECRET, before=st.text(max_size=30), after=st.text(max_size=30))
def test_what_stands_where_secrets_stand_is_taken_out(place: str, secret: str, before: str, after: str) -> None:
    if secret in before + after or secret in place:
        return
    assert secret not in Redaction().clean(f"{before} {place.format(secret)} {after}")


@given(st.text(max_size=200))
def test_a_token_is_taken_out_wherever_it_stands(around: str) -> None:
    token = new_secret()
    assert token not in Redaction().clean(f"{around}{token}{around}")


@given(st.text(string.ascii_lowercase + " \n\r\x85=:/.?&", max_size=200))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    plain = text.replace("://", ":").replace("token", "").replace("password", "").replace("secret", "")
    assert Redaction().clean(f"GET {plain}") == f"GET {plain}"
