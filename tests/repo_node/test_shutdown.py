"""The end of a node's process: it is asked once or twice, and has a limit whatever hangs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from repo_node import node as nodes
from repo_node.metrics import Metrics
from repo_node.node import Node
from repo_node.shutdown import StopRequests, running_tasks, running_threads

END_SECONDS = 60

HANGS = """
    import asyncio, threading, time
    from repo_node import logs
    from repo_node.config import LogSection
    from repo_node.shutdown import EndLimit

    logs.configure(LogSection())

    async def deaf():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def serve():
        end = EndLimit(asyncio.get_running_loop())
        {hang}
        end.allow(0.2)
        await asyncio.sleep(0.05)

    asyncio.run(serve())
"""

HANGING = {
    "a task that cannot be cancelled": "task = asyncio.create_task(deaf(), name='deaf one')",
    "a thread of a disk": "threading.Thread(target=time.sleep, args=(3600,), name='deaf one').start()",
    "the event loop itself": "asyncio.get_running_loop().call_later(0.01, time.sleep, 3600)",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(program, capture_output=True, text=True, timeout=END_SECONDS, check=False)


@pytest.mark.parametrize("hang", HANGING.values(), ids=HANGING)
def test_process_ends_with_status_1_and_says_what_still_runs_when_its_end_hangs(hang: str) -> None:
    ended = run(HANGS.format(hang=hang))
    assert ended.returncode == 1
    assert "critical" in ended.stderr and "did not end in time" in ended.stderr
    if "deaf one" in hang:
        assert "deaf one" in ended.stderr


def test_process_that_ends_in_time_is_left_alone() -> None:
    ended = run(HANGS.format(hang="pass").replace("0.2", "3600"))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_process_is_given_the_time_allowed_last() -> None:
    ended = run(HANGS.format(hang="end.allow(30)").replace("end.allow(0.2)", "end.allow(3600); time.sleep(0.3)"))
    assert (ended.returncode, ended.stderr) == (0, "")


async def test_first_request_asks_and_a_second_one_hurries() -> None:
    stop = StopRequests()
    assert not stop.asked.is_set() and not stop.hurried.is_set()
    stop.ask()
    assert stop.asked.is_set() and not stop.hurried.is_set()
    stop.ask()
    stop.ask()
    assert stop.hurried.is_set()


async def test_tasks_are_told_with_the_innermost_place_at_which_they_wait() -> None:
    never = asyncio.Event()

    async def inner() -> None:
        await never.wait()

    async def outer() -> None:
        await inner()

    waiting = asyncio.create_task(outer(), name="the one that waits")
    await asyncio.sleep(0)
    told = next(line for line in running_tasks(asyncio.get_running_loop()) if line.startswith("the one that waits"))
    at = [told.index(place) for place in ("locals>.outer (test_shutdown.py:", "locals>.inner (test_", "Event.wait (")]
    assert at == sorted(at)
    never.set()
    await waiting


def test_threads_for_which_the_interpreter_would_wait_are_told() -> None:
    go = threading.Event()
    for daemon in (False, True):
        threading.Thread(target=go.wait, name=f"thread, daemon {daemon}", daemon=daemon).start()
    try:
        told = "\n".join(running_threads())
        assert "thread, daemon False: " in told and "daemon True" not in told
    finally:
        go.set()


async def test_postgres_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "COPIES_ANSWER_SECONDS_MAX", 0.05)
    asked = 0

    async def fetchrow(*_: object) -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    parts = SimpleNamespace(fetchrow=fetchrow, is_fresh=True, view=SimpleNamespace(node="node-1"))
    node = Node(Metrics(), *cast(Any, (parts, parts, parts, parts, parts)))
    async with asyncio.timeout(END_SECONDS):
        await node.drained(0, 3600, asyncio.Event())
        assert await node.sole_copies() == 0
    assert asked == 2
