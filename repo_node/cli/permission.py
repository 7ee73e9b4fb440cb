"""Permission targets: who may do what, in which repositories, at which paths."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.named import Named
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import printable

TARGETS = Named("/api/v2/security/permissions")
ACTIONS = ("read", "annotate", "write", "delete", "manage")


def read_grants(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the actions of each name in ``NAME=ACTION,ACTION``. Raises ``click.BadParameter``."""
    found: dict[str, list[str]] = {}
    for value in values:
        name, equals, actions = value.rpartition("=")
        given = [action.strip() for action in actions.split(",") if action.strip()]
        if not (name and equals and given) or set(given) - set(ACTIONS):
            raise click.BadParameter(f"write NAME=ACTION,ACTION with actions of {', '.join(ACTIONS)}")
        found.setdefault(name, []).extend(given)
    return found


@click.group()
def permission() -> None:
    """Say who may do what, in which repositories, at which paths.

    \b
    Examples:
      holdfast permission set builds --repository generic-local --grant-group builders=read,write
      holdfast permission show builds
    """


@permission.command("set")
@click.argument("name", metavar="NAME")
@click.option("--repository", "keys", metavar="KEY", multiple=True, required=True, help='A repository, or "ANY".')
@click.option(
    "--include", "includes", metavar="PATTERN", multiple=True, help="Paths, such as com/acme/**; default all."
)
@click.option("--exclude", "excludes", metavar="PATTERN", multiple=True, help="Paths that are left out again.")
@click.option(
    "--grant-user", "users", metavar="NAME=ACTIONS", multiple=True, callback=read_grants, help="What a user may do."
)
@click.option(
    "--grant-group", "groups", metavar="NAME=ACTIONS", multiple=True, callback=read_grants, help="A group's rights."
)
@connection_options
def set_permission(
    connection: ConnectionOptions,
    name: str,
    keys: tuple[str, ...],
    includes: tuple[str, ...],
    excludes: tuple[str, ...],
    users: dict[str, list[str]],
    groups: dict[str, list[str]],
) -> None:
    """Make a permission target, or replace one: what is not said is not allowed by it.

    Actions are read, annotate, write, delete and manage. Overwriting another artifact needs delete too.

    \b
    Examples:
      holdfast permission set builds --repository generic-local --grant-group builders=read,write
      holdfast permission set public --repository ANY --include "public/**" --grant-user anonymous=read
    """
    body = {
        "repo": {
            "repositories": list(dict.fromkeys(keys)),
            "include-patterns": list(includes) or ["**"],
            "exclude-patterns": list(excludes),
            "actions": {"users": users, "groups": groups},
        }
    }
    TARGETS.send(connection, "PUT", name, body)
    click.echo(f"The permission target {printable(name)} holds now, on every node.")


@permission.command("list")
@AS_JSON
@connection_options
def list_permissions(connection: ConnectionOptions, as_json: bool) -> None:
    """List the permission targets.

    \b
    Example:
      holdfast permission list
    """
    none = "There are no permission targets: only administrators may do anything."
    TARGETS.show_names(connection, as_json=as_json, none=none)


@permission.command("show")
@click.argument("name", metavar="NAME")
@AS_JSON
@connection_options
def show_permission(connection: ConnectionOptions, name: str, as_json: bool) -> None:
    """Show a permission target: where it holds, and who may do what by it.

    \b
    Example:
      holdfast permission show builds
    """
    answer = TARGETS.read(connection, name, "name", "repo")
    if as_json:
        show_json(answer)
        return
    repo: dict[str, Any] = answer["repo"]
    for title, key in (
        ("Repositories", "repositories"),
        ("Paths", "include-patterns"),
        ("But not", "exclude-patterns"),
    ):
        click.echo(printable(f"{title}: " + (", ".join(filter(None, repo[key])) or "-")))
    table = new_table("Who may do what")
    for column in ("Kind", "Name", "Actions"):
        table.add_column(column, overflow="fold")
    for kind, granted in repo["actions"].items():
        for who, actions in granted.items():
            table.add_row(*(Text(printable(cell)) for cell in (kind.removesuffix("s"), who, ", ".join(actions))))
    new_console().print(table)


@permission.command("delete")
@click.argument("name", metavar="NAME")
@connection_options
def delete_permission(connection: ConnectionOptions, name: str) -> None:
    """Delete a permission target, and what it allowed.

    \b
    Example:
      holdfast permission delete builds
    """
    TARGETS.send(connection, "DELETE", name)
    click.echo(f"The permission target {printable(name)} is deleted.")
