"""Access tokens: create, list, revoke."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import parse_duration, printable, say_seconds
from repo_node.launch.private import write_private

SCOPES = ("read", "annotate", "write", "delete", "manage", "metrics", "admin")
ALL_RIGHTS, OF_GROUPS = "applied-permissions/user", "applied-permissions/groups:"


def read_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the seconds that an option such as ``30d`` means. Raises ``click.BadParameter``."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group()
def token() -> None:
    """Create, list and revoke access tokens.

    A token goes into `Authorization: Bearer TOKEN`, or into HOLDFAST_TOKEN for this command line.

    \b
    Examples:
      holdfast token create --scope read --scope write --expires 30d --description "build agents"
      holdfast token revoke 7
    """


@token.command("create")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="Repeat for several.")
@click.option("--all-rights", is_flag=True, help="All that its user may do, now and later.")
@click.option("--group", "groups", metavar="NAME", multiple=True, help="What this group may do, and no more.")
@click.option("--for", "owner", metavar="NAME", help="Whose token it is; default: your own.")
@click.option(
    "--expires", "seconds", callback=read_duration, metavar="DURATION", help="For example 12h or 30d; default never."
)
@click.option("--description", default="", metavar="TEXT", help="What it is for; shown by `token list`.")
@click.option(
    "--output",
    "-o",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token to FILE (mode 0600) instead of printing it.",
)
@AS_JSON
@connection_options
def create_token(
    connection: ConnectionOptions,
    scopes: tuple[str, ...],
    all_rights: bool,
    groups: tuple[str, ...],
    owner: str | None,
    seconds: int | None,
    description: str,
    path: Path | None,
    as_json: bool,
) -> None:
    """Make a token and print it, once: the cluster keeps only a hash of it.

    \b
    Examples:
      export HOLDFAST_TOKEN=$(holdfast token create --scope read --scope write --expires 30d)
      holdfast token create --scope metrics --description prometheus --output ./metrics-token
      holdfast token create --for ci --all-rights --expires 90d
    """
    words = [*dict.fromkeys(scopes), *([ALL_RIGHTS] if all_rights else [])]
    words += [OF_GROUPS + ",".join(dict.fromkeys(groups))] if groups else []
    if not words:
        raise click.UsageError("say what the token may do: --scope, --group or --all-rights")
    body = {"description": description, "scopes": words, "expires_in_seconds": seconds}
    body |= {"user": owner} if owner else {}
    # A repeated request could leave a second token behind that nobody knows of.
    answer = run_call(
        connection,
        lambda client: client.call("POST", "/api/holdfast/tokens", body=body, idempotent=False),
        *("id", "token", "scopes"),
    )
    secret = str(answer["token"])
    if path is not None:
        keep_token(path, secret, answer["id"])
        answer = {key: value for key, value in answer.items() if key != "token"} | {"token_file": str(path)}
    if as_json:
        show_json(answer)
    elif path is None:
        click.echo(secret)
    click.echo(describe(answer, path), err=True)


def keep_token(path: Path, secret: str, token_id: Any) -> None:
    try:
        write_private(path, secret + "\n")
    except OSError as error:
        raise click.ClickException(
            f"token {token_id} was made, but {path} cannot be written ({error.strerror}); "
            f"revoke it with: holdfast token revoke {token_id}"
        ) from None


def describe(answer: dict[str, Any], path: Path | None) -> str:
    seconds = answer.get("expires_in_seconds")
    end = "does not expire" if seconds is None else f"expires in {say_seconds(seconds)}"
    where = "keep it, it is not shown again" if path is None else f"it is in {path}"
    return f"Token {answer['id']} ({', '.join(map(str, answer['scopes']))}) {end}; {where}."


@token.command("list")
@AS_JSON
@connection_options
def list_tokens(connection: ConnectionOptions, as_json: bool) -> None:
    """List the tokens that are valid, with their last characters instead of the secret.

    \b
    Example:
      holdfast token list
    """
    answer = run_call(connection, lambda client: client.call("GET", "/api/holdfast/tokens"), "tokens")
    if as_json:
        show_json(answer)
    elif answer["tokens"]:
        new_console().print(table_of(answer["tokens"]))
    else:
        click.echo("There are no tokens. Make one with: holdfast token create --scope read")


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = new_table("Tokens")
    table.add_column("Id", justify="right", no_wrap=True)
    for name in ("User", "Ending", "Scopes", "Created", "Expires", "Description"):
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = (
            str(row["id"]),
            str(row["user"]),
            f"...{row['ending']}",
            ", ".join(map(str, row["scopes"])),
            say_time(row["created_at"]),
            say_time(row["expires_at"]) if row["expires_at"] else "never",
            str(row["description"]),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def say_time(text: str) -> str:
    """Return an ISO 8601 time to the minute: the rest is of no use to a person."""
    return text[:16].replace("T", " ")


@token.command("revoke")
@click.argument("token_id", metavar="ID", type=click.IntRange(min=1))
@connection_options
def revoke_token(connection: ConnectionOptions, token_id: int) -> None:
    """Revoke a token: every node refuses it at once. `holdfast token list` shows the ids.

    \b
    Example:
      holdfast token revoke 7
    """
    run_call(connection, lambda client: client.call("DELETE", f"/api/holdfast/tokens/{token_id}"))
    click.echo(f"Token {token_id} is revoked.")
