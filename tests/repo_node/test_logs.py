"""Logs: one event a line whatever is in it, a request id from edge to shard, and no secret anywhere."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from repo_node import keys, logs
from repo_node.api.shards import ShardHandlers
from repo_node.config import LogSection
from repo_node.logs import REQUESTS, JsonFormatter, RequestRecord, TextFormatter
from sharding import wire
from tests.repo_node.http import Answer
from tests.repo_node.nodes import (
    CLUSTER_KEY,
    PASSWORD,
    RunningCluster,
    basic,
    configure,
    new_path,
    random_bytes,
    run_nodes,
    wait_until,
)

FORMATTERS = [JsonFormatter(), TextFormatter()]
NASTY = "line one\nline two\r\x1b[31mred\x9b\u202e\x7f\ud800"


class Captured(logging.Handler):
    """Keeps every line, as both formatters write it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.json: list[str] = []
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.json.append(FORMATTERS[0].format(record))
        self.text.append(FORMATTERS[1].format(record))


@pytest.fixture
def captured() -> Iterator[Captured]:
    """Everything that is logged, down to debug."""
    handler, root = Captured(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def record(message: str, *, error: Exception | None = None, **facts: object) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("holdfast.test", logging.INFO, __file__, 1, message, None, info)
    if facts:
        made.facts = facts
    return made


def test_record_of_a_request_has_what_any_other_has_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    for left_out in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        monkeypatch.setattr(logging, left_out, False, raising=False)
    other = vars(logging.LogRecord(REQUESTS, logging.INFO, "", 0, "request", (), None))
    made = vars(RequestRecord({"status": 200}))
    assert made.pop("facts") == {"status": 200}
    moments = ("created", "relativeCreated")
    assert [made[name] for name in moments] == pytest.approx([other[name] for name in moments], abs=1000)
    varying = (*moments, "msecs", "taskName")
    assert {name: made[name] for name in made if name not in varying} == {
        name: other[name] for name in other if name not in varying
    }


# ---------------------------------------------------------------------- form


def test_a_json_line_is_one_line_and_says_everything() -> None:
    error = ValueError(NASTY)
    line = JsonFormatter().format(record(NASTY, error=error, path=NASTY, count=3, other=object))
    assert line.isprintable()
    event = json.loads(line)
    assert set(event) == {"at", "level", "logger", "event", "request_id", "path", "count", "other", "exception"}
    assert event["event"] == event["path"] == NASTY
    assert (event["level"], event["logger"], event["request_id"], event["count"]) == ("info", "holdfast.test", "-", 3)
    assert "line two" in event["exception"]


def test_a_text_line_cannot_be_forged_by_what_is_in_it() -> None:
    forged = "x\n2025-01-01T00:00:00.000Z critical forged"
    lines = TextFormatter().format(record(forged, error=ValueError(forged + NASTY), path=forged)).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2025") for line in lines)
    assert lines[0].endswith(r"path=x\n2025-01-01T00:00:00.000Z critical forged")
    assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize("form", ["json", "text"])
def test_configure_writes_to_standard_error_at_its_level(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "aiohttp.access")}
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    root.handlers = []  # so that those of pytest are not closed
    try:
        logs.configure(LogSection.model_validate({"format": form, "level": "warning"}))
        logging.getLogger("x").info("not this")
        logging.getLogger("x").warning("this", extra={"facts": {"a": 1}})
    finally:
        root.handlers, level = before
        root.setLevel(level)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["a"] == 1 if form == "json" else lines[0].endswith(" this a=1")


# ---------------------------------------------------------------------- requests


def test_every_request_is_one_json_line(one: RunningCluster, captured: Captured) -> None:
    path = new_path()
    identity = "test-request-0001"
    one.admin.request("PUT", path, b"x", {"X-Request-Id": identity})
    one.first.client().get(path)
    one.admin.get("/artifactory/generic-local/%0aforged%1b[31m")
    with one.admin.raw() as raw:
        raw.send(b"GARBAGE\r\n\r\n")
        assert raw.read_head()[0] == 400
    events = [json.loads(line) for line in captured.json]
    requests = [event for event in events if event["event"] == "request"]
    assert [(event["method"], event["status"], event["principal"]) for event in requests] == [
        ("PUT", 201, "admin"),
        ("GET", 401, "anonymous"),
        ("GET", 400, "anonymous"),
    ]
    assert requests[0]["request_id"] == identity
    assert requests[0]["path"] == path
    assert requests[2]["path"] == "(refused)"
    assert requests[0]["client"] == "127.0.0.1" and requests[0]["milliseconds"] >= 0
    assert not any("forged" in line or "GARBAGE" in line for line in captured.json + captured.text)


@pytest.mark.parametrize("offered", ["short", "x" * 65, "has space 12345", 'quote"12345678', "\u00e4" * 10, ""])
def test_a_request_id_that_could_do_harm_is_replaced(one: RunningCluster, offered: str) -> None:
    answer = one.admin.request("GET", new_path(), headers={"X-Request-Id": offered.encode().decode("latin-1")})
    assert len(answer.headers["X-Request-Id"]) == 32
    kept = one.admin.get(new_path(), X_Request_Id="build-4711.step_2").headers["X-Request-Id"]
    assert kept == "build-4711.step_2"


def test_the_request_id_reaches_the_shard_on_another_node(
    three: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    shard_of = ShardHandlers._shard

    def spy(handlers: ShardHandlers, request: web.Request) -> object:
        seen.append(logs.request_id.get())
        return shard_of(handlers, request)

    monkeypatch.setattr(ShardHandlers, "_shard", spy)
    for size in (1000, 3_000_000):
        identity, path = f"trace-{size:08}", new_path()
        assert three.admin.request("PUT", path, random_bytes(size), {"X-Request-Id": identity}).status == 201
        assert identity in seen
        event = three.sql(
            "SELECT request_id FROM events WHERE path = $1", path.removeprefix("/artifactory/generic-local/")
        )
        assert event[0]["request_id"] == identity


def test_a_client_that_goes_away_is_no_error_of_the_node(one: RunningCluster, captured: Captured) -> None:
    path, body = new_path(), random_bytes(24 << 20)
    assert one.admin.put(path, body).status == 201
    with one.admin.raw() as raw:
        raw.send_head("GET", path)
        assert raw.read_head()[0] == 200
        raw.reset()
    with one.admin.raw() as raw:
        raw.send_head("PUT", new_path(), "Content-Length: 100")
        raw.send(b"half")
        raw.reset()
    wait_until(lambda: sum('"status": 499' in line for line in captured.json) == 2)
    assert not any("Traceback" in line or '"level": "error"' in line for line in captured.json)


# ---------------------------------------------------------------------- secrets


def test_s33_no_secret_is_in_any_log_line_or_answer(one: RunningCluster, captured: Captured, directory: Path) -> None:
    token = one.token("read", "write", description="canary")
    dsn = urlsplit(one.dsn)
    secrets_kept = {
        PASSWORD,
        token,
        token[7:40],
        base64.b64encode(f"admin:{PASSWORD}".encode()).decode(),
        CLUSTER_KEY.hex(),
        base64.b64encode(CLUSTER_KEY).decode(),
        keys.derive(CLUSTER_KEY, wire.TOKEN_PURPOSE),
        dsn.password or "no password",
    }
    captured.json.clear()
    captured.text.clear()
    answers = list(talk(one, token))
    fail_to_start(one, directory)
    for secret in secrets_kept:
        assert not any(secret in line for line in captured.json + captured.text), secret
        for answer in answers:
            assert secret not in str(answer.headers) and secret.encode() not in answer.body
    assert len(captured.json) > len(answers)


def talk(one: RunningCluster, token: str) -> Iterator[Answer]:
    """Use the secrets in every way that could go wrong."""
    admin, bearer, path = one.admin, one.first.client(f"Bearer {token}"), new_path()
    yield admin.put(path, b"x")
    yield bearer.get(path)
    yield bearer.delete(path)
    yield one.first.client().get(path, X_JFrog_Art_Api=token)
    yield one.first.client(basic(PASSWORD, "wrong")).get(path)
    yield one.first.client(basic("admin", PASSWORD + "x")).get(path)
    yield one.first.client(f"Bearer {token}x").get(path)
    yield one.first.client(f"{PASSWORD} {token}").get(path)
    yield admin.get(f"{path}?token={token}&password={PASSWORD}")
    yield admin.get(path, Cookie=f"session={token}", User_Agent=PASSWORD, Referer=f"http://x/?{token}")
    yield admin.put(path, b"x", X_Checksum_Sha256="a" * 64)
    yield admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": ["none"], "description": PASSWORD})
    yield admin.get("/artifactory/api/holdfast/status")
    yield admin.get("/artifactory/api/holdfast/settings")
    yield admin.get("/artifactory/api/holdfast/tokens")
    yield admin.get("/metrics")
    for malformed in (f"Authorization: Basic {PASSWORD}\0", f"Authorization : Bearer {token}", f"{PASSWORD}"):
        with one.first.client().raw() as raw:
            raw.send_head("GET", path, malformed)
            raw.read_head()
    with one.first.client().raw() as raw:
        raw.send(f"{PASSWORD} {token}\r\n\r\n".encode())
        raw.read_head()


def fail_to_start(one: RunningCluster, directory: Path) -> None:
    """Start nodes that cannot reach their database."""
    parts = urlsplit(one.dsn)
    wrong = parts._replace(path="/no_such_database").geturl()
    unresolved = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:1").geturl()
    for dsn in (wrong, unresolved):
        config = configure(dsn, directory, database={"start_timeout_seconds": 0.1})
        with pytest.raises(Exception) as failure, run_nodes([config]):
            pass
        logging.getLogger("holdfast").critical("cannot run", extra={"facts": {"cause": str(failure.value)}})
        logging.getLogger("holdfast").debug("configuration %s", config, exc_info=failure.value)


def test_s33_the_secrets_of_a_configuration_do_not_show(one: RunningCluster) -> None:
    shown = repr(one.first.config) + str(one.first.config) + one.first.config.model_dump_json(exclude={"database"})
    assert CLUSTER_KEY.hex() not in shown and repr(CLUSTER_KEY) not in shown
    assert (urlsplit(one.dsn).password or "no password") not in shown


async def test_lines_of_a_moments_requests_are_written_together_and_all_others_at_once_in_order() -> None:
    out = io.StringIO()
    handler = logs.GatheringHandler(out)
    for number in range(3):
        handler.handle(of_requests(str(number)))
    assert not out.getvalue()
    await asyncio.sleep(2 * logs.GATHER_SECONDS)
    assert out.getvalue().split() == ["0", "1", "2"]
    handler.handle(of_requests("3"))
    handler.handle(of_requests("4", logging.WARNING))
    assert out.getvalue().split() == ["0", "1", "2", "3", "4"]
    handler.handle(of_requests("5"))
    handler.handle(record("6"))
    assert out.getvalue().split()[-2:] == ["5", "6"]
    handler.handle(of_requests("7"))
    handler.flush()
    assert out.getvalue().split()[-1] == "7"


def test_line_of_a_request_in_a_thread_without_an_event_loop_is_written_at_once() -> None:
    out = io.StringIO()
    logs.GatheringHandler(out).handle(of_requests("alone"))
    assert out.getvalue() == "alone\n"


def of_requests(message: str, level: int = logging.INFO) -> logging.LogRecord:
    made = record(message)
    made.name, made.levelno = logs.REQUESTS, level
    return made
