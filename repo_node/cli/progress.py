"""How transfers are shown: bars on a terminal, plain lines elsewhere, or nothing until the end.

Bars and notices go to standard error, the line of a finished file to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from repo_node.cli.tables import new_console
from repo_node.cli.wording import printable, say_bytes, say_count, say_seconds

LINE_SECONDS = 10.0
NAME_CHARACTERS_MAX = 30
TRANSFERS = ("sending", "receiving")
"""The stages whose bytes count in the whole; hashing and checking do not."""


class Board(Protocol):
    """Where the transfers of one command are shown."""

    def expect(self, count_bytes: int) -> None:
        """So many more bytes will be transferred than was known until now."""

    def move(self, count_bytes: int) -> None:
        """So many more bytes of the whole are done; below zero when a broken attempt had counted them."""

    def open(self, name: str, total_bytes: int | None) -> Watcher:
        """Show one more transfer and return its watcher; ``total_bytes`` is None while its size is unknown."""

    def draw(self, watcher: Watcher, stage: str, total_bytes: int | None, done_bytes: int) -> None:
        """A stage of one transfer starts."""

    def grow(self, watcher: Watcher, count_bytes: int) -> None:
        """A stage of one transfer has gone on by so many bytes."""

    def finish(self, watcher: Watcher, line: str) -> None:
        """One transfer is complete."""

    def fail(self, watcher: Watcher | None, line: str) -> None:
        """One transfer failed, or could not start."""

    def notice(self, line: str) -> None:
        """Something a person should know, on a line of its own."""


class Watcher:
    """The ``repo_node.client.progress.Progress`` of one transfer; keeps the board's whole right over retries."""

    def __init__(self, board: Board, name: str, total_bytes: int | None, task: TaskID | None = None) -> None:
        self.name = name
        self.task = task
        self._board = board
        self._total_bytes = total_bytes
        self._counted_bytes = 0
        self._counts = False

    def begin(self, stage: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        self._counts = stage in TRANSFERS
        counted = done_bytes if self._counts else 0
        self._board.move(counted - self._counted_bytes)
        self._counted_bytes = counted
        if self._total_bytes is None and self._counts and total_bytes is not None:
            self._total_bytes = total_bytes
            self._board.expect(total_bytes)
        self._board.draw(self, stage, total_bytes, done_bytes)

    def advance(self, count_bytes: int) -> None:
        if self._counts:
            self._counted_bytes += count_bytes
            self._board.move(count_bytes)
        self._board.grow(self, count_bytes)

    def wait(self, reason: str, seconds: float) -> None:
        self._board.notice(f"{self.name}: {reason}; again in {seconds:.1f} s")


class Lines:
    """A line for each finished file and, in a long transfer, one now and then about the whole."""

    def __init__(self, *, names_files: bool, tells_progress: bool) -> None:
        self._names_files = names_files
        self._tells_progress = tells_progress
        self._total_bytes = 0
        self._done_bytes = 0
        self._started_at = self._told_at = time.monotonic()

    def expect(self, count_bytes: int) -> None:
        self._total_bytes += count_bytes

    def move(self, count_bytes: int) -> None:
        self._done_bytes += count_bytes

    def open(self, name: str, total_bytes: int | None) -> Watcher:
        return Watcher(self, name, total_bytes)

    def draw(self, watcher: Watcher, stage: str, total_bytes: int | None, done_bytes: int) -> None:
        self._tell()

    def grow(self, watcher: Watcher, count_bytes: int) -> None:
        self._tell()

    def finish(self, watcher: Watcher, line: str) -> None:
        if self._names_files:
            click.echo(printable(line))

    def fail(self, watcher: Watcher | None, line: str) -> None:
        self.notice(line)

    def notice(self, line: str) -> None:
        click.echo(printable(line), err=True)

    def _tell(self) -> None:
        now = time.monotonic()
        if self._tells_progress and now - self._told_at >= LINE_SECONDS:
            self._told_at = now
            self.notice(say_progress(self._done_bytes, self._total_bytes, now - self._started_at))


class BytesColumn(ProgressColumn):
    """``12.0 MiB of 1.4 GiB``."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else say_bytes(task.total)
        return Text(f"{say_bytes(task.completed)} of {total}", justify="right")


class RateColumn(ProgressColumn):
    """``116.0 MiB/s``."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{say_bytes(max(speed, 0))}/s", justify="right")


class Bars:
    """A bar for everything, and one for each transfer under way."""

    def __init__(self, title: str) -> None:
        self.bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=3)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            BytesColumn(table_column=Column(no_wrap=True)),
            RateColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=new_console(stderr=True),
            expand=True,
            transient=True,
        )
        self._whole = self.bars.add_task(title, total=0)
        self._whole_task = self.bars.tasks[0]

    def expect(self, count_bytes: int) -> None:
        # Progress.update would forget the rate each time that the total grows.
        self._whole_task.total = (self._whole_task.total or 0) + count_bytes

    def move(self, count_bytes: int) -> None:
        if count_bytes:
            self.bars.advance(self._whole, count_bytes)

    def open(self, name: str, total_bytes: int | None) -> Watcher:
        task = self.bars.add_task(shorten(printable(name)), total=total_bytes)
        return Watcher(self, name, total_bytes, task)

    def draw(self, watcher: Watcher, stage: str, total_bytes: int | None, done_bytes: int) -> None:
        if watcher.task is not None:
            label = shorten(f"{stage} {printable(watcher.name)}")
            self.bars.reset(watcher.task, total=total_bytes, completed=done_bytes, description=label)

    def grow(self, watcher: Watcher, count_bytes: int) -> None:
        if watcher.task is not None:
            self.bars.advance(watcher.task, count_bytes)

    def finish(self, watcher: Watcher, line: str) -> None:
        if watcher.task is not None:
            self.bars.remove_task(watcher.task)

    def fail(self, watcher: Watcher | None, line: str) -> None:
        if watcher is not None and watcher.task is not None:
            self.bars.remove_task(watcher.task)
        self.notice(line)

    def notice(self, line: str) -> None:
        self.bars.console.print(Text(printable(line)), soft_wrap=True)


def shorten(label: str) -> str:
    """Return ``label`` with its middle left out where it is long: the ends tell files apart."""
    if len(label) <= NAME_CHARACTERS_MAX:
        return label
    half = (NAME_CHARACTERS_MAX - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


@contextmanager
def open_board(title: str, *, quiet: bool, as_json: bool) -> Iterator[Board]:
    """Yield the board that fits: bars where standard error is a terminal, lines elsewhere and where ``quiet``."""
    if sys.stderr.isatty() and not quiet:
        board = Bars(title)
        with board.bars:
            yield board
    else:
        yield Lines(names_files=not (quiet or as_json), tells_progress=not quiet)


def say_progress(done_bytes: int, total_bytes: int, seconds: float) -> str:
    """Return how far everything is, how fast it goes, and when it will be done."""
    rate = done_bytes / max(seconds, 1e-3)
    text = f"{say_bytes(done_bytes)} of {say_bytes(total_bytes)}, {say_bytes(rate)}/s"
    left = total_bytes - done_bytes
    return f"{text}, {say_seconds(left / rate)} left" if rate > 0 and left > 0 else text


def say_total(verb: str, files: int, count_bytes: int, seconds: float) -> str:
    """Return the sentence at the end: how much in how long."""
    rate = say_bytes(count_bytes / max(seconds, 1e-3))
    return f"{verb} {say_count(files, 'file')}, {say_bytes(count_bytes)}, in {say_seconds(seconds)} ({rate}/s)."
