"""Groups of users."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.wording import printable

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
GROUPS = "/api/security/groups"


def url_of(name: str) -> str:
    return f"{GROUPS}/{quote(name, safe='')}"


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
    run_call(connection, lambda client: client.call("PUT", url_of(name), body=body, has_answer=False))
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
    names = [one["name"] for one in run_call(connection, lambda client: client.call("GET", GROUPS))]
    click.echo(json.dumps(names, indent=2) if as_json else "\n".join(map(printable, names)) or "There are no groups.")


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
    path = f"{url_of(name)}?includeUsers=true"
    answer = run_call(connection, lambda client: client.call("GET", path), "name", "userNames")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
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
    async def work(client: Any) -> list[str]:
        answer = await client.call("GET", f"{url_of(name)}?includeUsers=true")
        members = sorted(change(set(answer["userNames"])))
        await client.call("POST", url_of(name), body={"userNames": members}, has_answer=False)
        return members

    members = run_call(connection, work)
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
    run_call(connection, lambda client: client.call("DELETE", url_of(name), has_answer=False))
    click.echo(f"Group {printable(name)} is deleted.")
