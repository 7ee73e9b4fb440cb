"""Where the tasks and threads of this process are: files, lines and functions, and nothing of what they work on."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Any

TASKS_MAX = 2_000
FRAMES_MAX = 60
BATCH = 50
"""Tasks that are looked at without a break for others."""


async def dump() -> str:
    """Return the stacks of all tasks, alike ones together, and of all threads."""
    tasks = list(asyncio.all_tasks())
    stacks: Counter[tuple[str, ...]] = Counter()
    for start in range(0, min(len(tasks), TASKS_MAX), BATCH):
        stacks.update(task_stack(task) for task in tasks[start : min(start + BATCH, TASKS_MAX)] if not task.done())
        await asyncio.sleep(0)
    text = [f"{len(tasks)} tasks; {stacks.total()} looked at\n"]
    for stack, count in stacks.most_common():
        text += [f"\n{count} x\n", *(f"    {line}\n" for line in stack)]
    return "".join([*text, "\n", *thread_stacks()])


def task_stack(task: asyncio.Task[Any]) -> tuple[str, ...]:
    """Return where a task waits: its coroutine, the one that awaits, and so on to the last."""
    found: list[str] = []
    at: Any = task.get_coro()
    while at is not None and len(found) < FRAMES_MAX:
        # A coroutine, a generator that is awaited, or an asynchronous generator.
        frame: FrameType | None = (
            getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None) or getattr(at, "ag_frame", None)
        )
        if frame is None:
            break
        found.append(place_of(frame.f_code, frame.f_lineno))
        at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None) or getattr(at, "ag_await", None)
    return tuple(found)


def thread_stacks() -> list[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    text = []
    for ident, frame in sys._current_frames().items():
        text.append(f"thread {names.get(ident, ident)}\n")
        at: FrameType | None = frame
        for _ in range(FRAMES_MAX):
            if at is None:
                break
            text.append(f"    {place_of(at.f_code, at.f_lineno)}\n")
            at = at.f_back
    return text


def place_of(code: CodeType, line: int | None) -> str:
    """Return a place in the code, its file by the last parts of its name."""
    return f"{'/'.join(code.co_filename.split('/')[-3:])}:{line} {code.co_qualname}"
