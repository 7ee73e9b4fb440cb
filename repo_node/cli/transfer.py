"""What ``upload`` and ``download`` share: their options, and the words for paths in the cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from repo_node.cli.connection import connection_options
from repo_node.cli.wording import printable
from repo_node.client.paths import PathError, RemotePath, parse_remote
from repo_node.client.retry import RetryPolicy

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How files are transferred and shown."""

    jobs: int
    retries: int
    quiet: bool
    as_json: bool

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy(self.retries)


def transfer_options(command: Command) -> Command:
    """Give a command the options of a transfer and of the connection, as ``options`` and ``connection``."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        names = [field.name for field in fields(TransferOptions)]
        options = TransferOptions(**{name: arguments.pop(name) for name in names})
        return command(options=options, **arguments)

    decorated: Any = connection_options(wrapped)
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Transfers at the same time."
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        default=5,
        show_default=True,
        help="Further attempts of each file when the cluster is busy or a connection breaks.",
    ),
    click.option("--no-progress", "quiet", is_flag=True, help="Show nothing but failures and the sum at the end."),
    click.option("--json", "as_json", is_flag=True, help="Print the outcome of every file as JSON at the end."),
)


def read_remote(text: str) -> RemotePath:
    """Return the path that a person wrote. Raises ``click.UsageError``."""
    try:
        return parse_remote(text)
    except PathError as error:
        raise click.UsageError(f"{printable(text)}: {error}") from None
