"""Groups of users."""

from __future__ import annotations

from collections.abc import Callable

import click

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.named import Named
from repo_node.cli.wording import printable

GROUPS = Named("/api/security/groups")


@click.group()
def group() -> None:
    """Make groups of users, and say who belongs to them.

    \b
    Examples:
      holdfast group create builders --description "build agents"
      holdfast group add builders ci
    """


@group.command("create")
@click.argument("name", metavar="NAME")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option("--auto-join", is_flag=True, help="New users become members.")
@connection_options
def create_group(connection: ConnectionOptions, name: str, description: str, auto_join: bool) -> None:
    """Make a group, or say anew what one is.

    \b
    Example:
      holdfast group create builders --description "build agents"
    """
    body = {"description": description, "autoJoin": auto_join}
    GROUPS.send(connection, "PUT", name, body)
    click.echo(f"There is a group {printable(name)} now.")


@group.command("list")
@AS_JSON
@connection_options
def list_groups(connection: ConnectionOptions, as_json: bool) -> None:
    """List all groups.

    \b
    Example:
      holdfast group list
    """
    GROUPS.show_names(connection, as_json=as_json, none="There are no groups.")


@group.command("show")
@click.argument("name", metavar="NAME")
@AS_JSON
@connection_options
def show_group(connection: ConnectionOptions, name: str, as_json: bool) -> None:
    """Show a group and its members.

    \b
    Example:
      holdfast group show builders
    """
    answer = GROUPS.read(connection, name, "name", "userNames", query="?includeUsers=true")
    if as_json:
        show_json(answer)
        return
    joined = "; new users become members" if answer.get("autoJoin") else ""
    click.echo(printable(f"{answer['name']}: {answer.get('description') or 'no description'}{joined}"))
    click.echo(printable("Members: " + (", ".join(answer["userNames"]) or "none")))


@group.command("add")
@click.argument("name", metavar="NAME")
@click.argument("users", metavar="USER...", nargs=-1, required=True)
@connection_options
def add_members(connection: ConnectionOptions, name: str, users: tuple[str, ...]) -> None:
    """Make users members of a group.

    \b
    Example:
      holdfast group add builders ci alice
    """
    change_members(connection, name, lambda members: members | set(users))


@group.command("remove")
@click.argument("name", metavar="NAME")
@click.argument("users", metavar="USER...", nargs=-1, required=True)
@connection_options
def remove_members(connection: ConnectionOptions, name: str, users: tuple[str, ...]) -> None:
    """Take users out of a group.

    \b
    Example:
      holdfast group remove builders alice
    """
    change_members(connection, name, lambda members: members - set(users))


def change_members(connection: ConnectionOptions, name: str, change: Callable[[set[str]], set[str]]) -> None:
    answer = GROUPS.read(connection, name, "userNames", query="?includeUsers=true")
    members = sorted(change(set(answer["userNames"])))
    GROUPS.send(connection, "POST", name, {"userNames": members})
    click.echo(printable(f"Members of {name}: " + (", ".join(members) or "none")))


@group.command("delete")
@click.argument("name", metavar="NAME")
@connection_options
def delete_group(connection: ConnectionOptions, name: str) -> None:
    """Delete a group with its rights. Its members stay users.

    \b
    Example:
      holdfast group delete builders
    """
    GROUPS.send(connection, "DELETE", name)
    click.echo(f"Group {printable(name)} is deleted.")
