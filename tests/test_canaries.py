"""S33: the watch over the secrets of all tests finds each that is leaked, however it is written."""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Callable
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from repo_node.auth import tokens
from tests import canaries
from tests.canaries import Watch
from tests.postgres import run_apart, run_statement

SECRET = canaries.password("of a test/ü")
KEPT = "2f1b/kept+7d90aa"
WAYS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quoted": lambda secret: quote(secret, safe=""),
    "hex": lambda secret: secret.encode().hex(),
    "basic": lambda secret: base64.b64encode(f"admin:{secret}".encode()).decode(),
    "basic, shorter name": lambda secret: base64.b64encode(f"joe:{secret}x".encode()).decode(),
    "basic, longer name": lambda secret: base64.b64encode(f"janet:{secret}".encode()).decode(),
    "in a document": lambda secret: json.dumps({"dsn": f"postgresql://x:{secret}@db/x"}),
}


@pytest.fixture
def watch() -> Watch:
    """A watch of this test's own: nobody else shall hear of what is leaked here."""
    made = Watch()
    made.keep("a kept one", KEPT)
    return made


@pytest.mark.parametrize("secret", [SECRET, KEPT])
@pytest.mark.parametrize("way", WAYS)
def test_s33_a_leak_is_found_however_it_is_written(watch: Watch, way: str, secret: str) -> None:
    watch.look("a line", f"before {WAYS[way](secret)} after")
    assert watch.take()
    assert watch.take() == []


def test_s33_a_token_is_found_whoever_made_it_and_nothing_that_is_none(watch: Watch) -> None:
    secret = tokens.new_secret()
    for harmless in ("", "admin", secret[:-1], "canary", "hf_tok_" + "0" * 49, "5dd1", f"{secret[:-3]}..."):
        watch.look("a line", harmless)
    assert watch.take() == []
    watch.look("a line", f"/a?token={secret}&x=1")
    assert len(watch.take()) == 1


def test_s33_a_leak_in_a_log_is_found_in_its_text_its_facts_and_its_exception(watch: Watch) -> None:
    log = logging.getLogger("canaries.test")
    with contextmanager(canaries.watched_logs)(watch, ["canaries.test"]):
        log.info("logged in with %s", SECRET)
        log.info("request", extra={"facts": {"path": SECRET}})
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.exception("failed")
        log.info("request", extra={"facts": {"path": "/artifactory"}})
    log.warning(SECRET)
    assert [line.partition(" has ")[0] for line in watch.take()][:3] == ["a line of canaries.test"] * 3
    assert watch.take() == []


@pytest.mark.parametrize(
    "leak",
    [
        f"UPDATE users SET email = '{SECRET}' WHERE name = 'admin'",
        f"INSERT INTO settings VALUES ('x', to_jsonb('{SECRET}'::text), now(), 'x')",
        f"UPDATE users SET password_hash = '{tokens.new_secret()}' WHERE name = 'admin'",
        f"INSERT INTO login_failures (kind, name) VALUES ('user', '{KEPT}')",
    ],
)
def test_s33_a_leak_in_the_database_is_found_whatever_the_column(dsn: str, watch: Watch, leak: str) -> None:
    run_apart(watch.look_into_database(dsn))
    assert watch.take() == []
    run_apart(run_statement(dsn, leak))
    run_apart(watch.look_into_database(dsn))
    assert len(watch.take()) == 1


def test_s33_a_leak_in_the_database_is_found_beside_a_secret_that_no_text_can_hold(dsn: str, watch: Watch) -> None:
    watch.keep("a key", "\0" + secrets.token_hex(32))
    run_apart(run_statement(dsn, f"UPDATE users SET email = '{SECRET}' WHERE name = 'admin'"))
    run_apart(watch.look_into_database(dsn))
    assert len(watch.take()) == 1
