"""Structured logs: one event a line, as JSON or as text a person reads, each with its request id.

Facts go into ``extra={"facts": {...}}``. Secrets never come here: what handles them logs names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, TextIO

from repo_node.config import LogSection
from repo_node.log_memory import LogMemory
from repo_node.log_outlet import LogOutlet

REQUESTS = "holdfast.requests"
"""The logger whose lines are gathered: there is one for each request. All else is rare, and written at once."""

GATHER_SECONDS = 0.05
"""How long a request's line waits for others to be written with it: what a killed process may keep to itself."""

GATHERED_MAX = 256

encode = json.JSONEncoder(default=str, ensure_ascii=False).encode
request_id: ContextVar[str] = ContextVar("request_id", default="-")


class RequestRecord(logging.LogRecord):
    """The record of one request: as any other, but made by three calls, because there is one for each request.

    What all of them have in common is found out once. Thread and process are left out, as ``configure`` has it for all.
    """

    FIRST = logging.LogRecord(REQUESTS, logging.INFO, "", 0, "request", (), None)
    COMMON = vars(FIRST) | dict.fromkeys(("thread", "threadName", "process", "processName", "taskName"))

    def __init__(self, facts: Mapping[str, object]) -> None:
        self.__dict__.update(self.COMMON)
        self.created = now = time.time()
        self.msecs = now % 1 * 1000
        self.relativeCreated += (now - self.FIRST.created) * 1000
        self.facts = facts


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "at": f"{moment(record)}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "request_id": request_id.get(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        line = encode(event)
        return line if line.isprintable() else "".join(map(json_escaped, line))


class TextFormatter(logging.Formatter):
    """The same for people; no text can begin a line of its own or reach the terminal as a control sequence."""

    def format(self, record: logging.LogRecord) -> str:
        at = f"{moment(record)}Z"
        facts = "".join([f" {key}={value}" for key, value in getattr(record, "facts", {}).items()])
        line = f"{at} {record.levelname.lower():7} {request_id.get()} {record.getMessage()}{facts}"
        if record.exc_info:
            trace = [text_line(f"    {line}") for line in self.formatException(record.exc_info).split("\n")]
            return "\n".join((text_line(line), *trace))
        return text_line(line)


class GatheringHandler(logging.Handler):
    """Writes the lines of a moment's requests together, and before any other line: those of all else at once."""

    def __init__(self, stream: TextIO, memory: LogMemory | None = None) -> None:
        super().__init__()
        self._outlet = LogOutlet(stream)
        self.memory = memory or LogMemory(0)
        self._lines: list[str] = []
        self._retries = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(line := self.format(record))
            urgent = record.name != REQUESTS or record.levelno >= logging.WARNING
            self.memory.put(record.created, line, is_request=not urgent)
            if urgent or len(self._lines) >= GATHERED_MAX:
                self.flush()
            elif len(self._lines) == 1:
                self._flush_later()
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what was gathered, as far as standard error takes it now."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            for line in lines:
                self._outlet.put(f"{line}\n")
            self._outlet.write()
            if self._outlet.lost and self._outlet.is_empty:
                self._tell_lost()
            if not self._outlet.is_empty and not self._retries and (loop := running_loop()) is not None:
                self._retries = True
                loop.call_later(GATHER_SECONDS, self._retry)

    def close(self) -> None:
        """Write all that is left, as slowly as it goes. Called at the end of the process."""
        with self.lock or nullcontext(), suppress(OSError, ValueError):
            for line in self._lines:
                self._outlet.put(f"{line}\n")
            self._lines = []
            self._outlet.write(waits=True)
        super().close()

    def _flush_later(self) -> None:
        if (loop := running_loop()) is None:
            self.flush()
        else:
            loop.call_later(GATHER_SECONDS, self.flush)

    def _retry(self) -> None:
        self._retries = False
        self.flush()

    def _tell_lost(self) -> None:
        told = logging.LogRecord("holdfast", logging.ERROR, "", 0, "log lines were lost: nobody took them", (), None)
        told.facts, self._outlet.lost = {"lines": self._outlet.lost}, 0
        self._outlet.put(f"{self.format(told)}\n")
        self._outlet.write()


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def mark(process: int, record: logging.LogRecord) -> bool:
    """Add the process to the facts of ``record``."""
    record.facts = {**getattr(record, "facts", {}), "process": process}
    return True


def moment(record: logging.LogRecord) -> str:
    """Return when ``record`` was made, in UTC, to the millisecond."""
    return f"{second(int(record.created))}.{int(record.msecs):03d}"


@lru_cache(2)
def second(since_1970: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_1970))


def json_escaped(character: str) -> str:
    """Return a character of a JSON document such that it shows."""
    return character if character.isprintable() else json.dumps(character)[1:-1]


def text_line(line: str) -> str:
    """Return a line of text such that all of it shows."""
    return line if line.isprintable() else "".join(map(text_escaped, line))


def text_escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def kept_lines(since: float, until: float) -> list[str]:
    """Return the lines of this process' log that are kept, of a stretch of time in seconds since 1970."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, GatheringHandler)]
    return [line for handler in handlers for line in handler.memory.between(since, until)]


def configure(section: LogSection, process: int | None = None) -> None:
    """Send every log of this process to standard error in the configured form.

    ``process`` tells the processes of one node apart, where there are several.
    """
    handler = GatheringHandler(sys.stderr, LogMemory(section.kept_bytes_max))
    if process is not None:
        handler.addFilter(partial(mark, process))
    handler.setFormatter(JsonFormatter() if section.format == "json" else TextFormatter())
    # What these formats do not show need not be found out for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the documented way to leave out the caller's place
    logging.basicConfig(level=section.level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)
