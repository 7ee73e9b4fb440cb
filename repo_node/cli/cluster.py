"""The switch that makes the whole cluster read-only."""

from __future__ import annotations

from typing import Any

import click

from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.settings import url_path_of
from repo_node.cli.wording import printable

SWITCH = "read_only_reason"


@click.group()
def cluster() -> None:
    """Direct the cluster as a whole.

    \b
    Example:
      holdfast cluster read-only on --reason "moving to the new database"
    """


@cluster.group("read-only", invoke_without_command=True)
@connection_options
@click.pass_context
def read_only(ctx: click.Context, connection: ConnectionOptions) -> None:
    """Make the cluster read-only, for work on the database, or say whether it is.

    Reads go on. Whatever would change something is refused with 503 and the reason, and nothing is deleted or
    moved; repairs go on. It holds on every node within a second.

    \b
    Examples:
      holdfast cluster read-only on --reason "moving to the new database"
      holdfast cluster read-only off
    """
    if ctx.invoked_subcommand is None:
        answer = run_call(connection, lambda client: client.call("GET", url_path_of(SWITCH)), "value")
        click.echo(f"Read-only: {printable(str(answer['value']))}" if answer["value"] else "The cluster takes changes.")


@read_only.command()
@click.option("--reason", required=True, help="What clients are told.")
@connection_options
def on(connection: ConnectionOptions, reason: str) -> None:
    """Refuse every change from now on."""
    if not reason.strip():
        raise click.UsageError("--reason is what clients are told: it cannot be empty.")
    switch(connection, reason.strip())
    click.echo("The cluster is read-only now, on every node within a second.")


@read_only.command()
@connection_options
def off(connection: ConnectionOptions) -> None:
    """Take changes again."""
    switch(connection, "")
    click.echo("The cluster takes changes again.")


def switch(connection: ConnectionOptions, reason: str) -> Any:
    return run_call(connection, lambda client: client.call("PUT", url_path_of(SWITCH), body={"value": reason}), "value")
