"""Repositories: list, show, create, update, delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import click
from rich.table import Table
from rich.text import Text

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.calls import run_call, say
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.tables import new_table, show
from repo_node.cli.wording import parse_bytes, printable, say_bytes

PATH = "/api/repositories"
POLICIES = ("client-checksums", "server-generated-checksums")

Command = TypeVar("Command", bound=Callable[..., Any])


def read_quota(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Return the bytes that an option such as ``10GiB`` means, or ``none``. Raises ``click.BadParameter``."""
    try:
        return value if value in (None, "none") else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def read_redundancy(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    if value in (None, "default"):
        return value
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 16):
        raise click.BadParameter("must be a number from 1 to 16, or default")
    return int(value)


OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--description", metavar="TEXT", help="What it is for; shown by `repo list`."),
    click.option("--notes", metavar="TEXT", help="Notes for administrators."),
    click.option("--includes", metavar="PATTERNS", help="What may lie in it, for example 'org/acme/**,com/**'."),
    click.option("--excludes", metavar="PATTERNS", help="What may not, for example '**/*.exe'."),
    click.option("--quota", callback=read_quota, metavar="SIZE", help="For example 500GiB; none: no limit."),
    click.option("--overwrite/--no-overwrite", default=None, help="Whether artifacts may be overwritten."),
    click.option("--delete/--no-delete", default=None, help="Whether artifacts may be deleted."),
    click.option("--priority/--no-priority", default=None, help="Whether virtual repositories look here first."),
    click.option("--trash/--no-trash", default=None, help="Whether the trash keeps what leaves."),
    click.option("--redundancy", callback=read_redundancy, metavar="COPIES", help="1 to 16; default: the cluster's."),
    click.option("--checksum-policy", type=click.Choice(POLICIES), help="Whether wrong checksums refuse an upload."),
    click.option("--member", "members", multiple=True, metavar="KEY", help="Of a virtual one, in order; all of them."),
    click.option("--deploy-to", metavar="KEY", help="Where uploads to a virtual one go; '' for nowhere."),
)


def configuration_options(command: Command) -> Command:
    """Give a command the options that describe a repository."""
    decorated: Any = command
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def body_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that the options describe; what was not given is not in it."""
    names = {
        "description": "description",
        "notes": "notes",
        "includes": "includesPattern",
        "excludes": "excludesPattern",
        "quota": "quotaBytes",
        "overwrite": "allowOverwrite",
        "delete": "allowDelete",
        "priority": "priorityResolution",
        "trash": "trash",
        "redundancy": "redundancy",
        "checksum_policy": "checksumPolicyType",
        "members": "repositories",
        "deploy_to": "defaultDeploymentRepo",
    }
    said = {names[name]: value for name, value in options.items() if value not in (None, ())}
    for name, word in (("quotaBytes", "none"), ("redundancy", "default")):
        if said.get(name) == word:
            said[name] = None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}


def path_of(key: str) -> str:
    return f"{PATH}/{quote(key, safe='')}"


@click.group()
def repo() -> None:
    """List, show, create, update and delete repositories.

    A local repository holds artifacts; a virtual one shows those of its members under one name.

    \b
    Examples:
      holdfast repo create releases --no-overwrite --no-delete
      holdfast repo create all --member releases --member generic-local --deploy-to generic-local
      holdfast repo update generic-local --quota 500GiB
    """


@repo.command("list")
@click.option("--type", "rclass", type=click.Choice(("local", "virtual")), help="Only those of this class.")
@AS_JSON
@connection_options
def list_repositories(connection: ConnectionOptions, rclass: str | None, as_json: bool) -> None:
    """List the repositories.

    \b
    Example:
      holdfast repo list --type virtual
    """
    path = PATH if rclass is None else f"{PATH}?type={rclass}"
    rows = run_call(connection, lambda client: client.call("GET", path))
    if as_json:
        show_json(rows)
    elif rows:
        show(table_of(rows))
    else:
        click.echo("There are no such repositories. Make one with: holdfast repo create NAME")


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = new_table("Repositories")
    for name in ("Key", "Class", "Package type", "Description"):
        table.add_column(name, no_wrap=name != "Description", overflow="fold")
    for row in rows:
        cells = (row["key"], str(row["type"]).lower(), row["packageType"], row["description"])
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    return table


@repo.command("show")
@click.argument("key", metavar="KEY")
@AS_JSON
@connection_options
def show_repository(connection: ConnectionOptions, key: str, as_json: bool) -> None:
    """Show how a repository is configured and, where it has a quota, how much of it is used.

    \b
    Example:
      holdfast repo show generic-local
    """
    answer = run_call(connection, lambda client: client.call("GET", path_of(key)), "key", "rclass")
    if as_json:
        show_json(answer)
        return
    table = new_table(printable(str(answer["key"])))
    table.add_column("Field", no_wrap=True)
    table.add_column("Value", overflow="fold")
    for name, value in answer.items():
        if name != "key":
            table.add_row(Text(printable(name)), Text(printable(say_value(name, value))))
    show(table)


def say_value(name: str, value: Any) -> str:
    match value:
        case None:
            return {"quotaBytes": "none", "redundancy": "the cluster's", "usedBytes": "not yet counted"}.get(
                name, "none"
            )
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value))
        case int() if name.endswith("Bytes"):
            return say_bytes(value)
        case _:
            return str(value)


@repo.command("create")
@click.argument("key", metavar="KEY")
@configuration_options
@connection_options
def create(connection: ConnectionOptions, key: str, **options: Any) -> None:
    """Make a repository: a virtual one where --member is given, else a local one.

    \b
    Examples:
      holdfast repo create releases --no-overwrite --no-delete --description "what was shipped"
      holdfast repo create all --member releases --member generic-local --deploy-to generic-local
    """
    rclass = "virtual" if options["members"] else "local"
    body = {"key": key, "rclass": rclass, "packageType": "generic", **body_of(options)}
    click.echo(printable(run_call(connection, lambda client: say(client, "PUT", path_of(key), body))))


@repo.command("update")
@click.argument("key", metavar="KEY")
@configuration_options
@connection_options
def update(connection: ConnectionOptions, key: str, **options: Any) -> None:
    """Change a repository; what no option names stays as it is. It holds on every node within a second.

    \b
    Examples:
      holdfast repo update generic-local --quota 500GiB --excludes '**/*.tmp'
      holdfast repo update generic-local --quota none
    """
    if not (body := body_of(options)):
        raise click.UsageError("nothing is to be changed: give at least one option")
    click.echo(printable(run_call(connection, lambda client: say(client, "POST", path_of(key), body))))


@repo.command("delete")
@click.argument("key", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
def delete(connection: ConnectionOptions, key: str, yes: bool) -> None:
    """Delete a repository with everything in it. What it held goes to the trash, where it keeps one.

    \b
    Example:
      holdfast repo delete scratch --yes
    """
    if not yes:
        click.confirm(f"Delete the repository {printable(key)} with everything in it?", abort=True)
    click.echo(printable(run_call(connection, lambda client: say(client, "DELETE", path_of(key)))))
