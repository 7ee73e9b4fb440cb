"""Users: made, listed, changed, unlocked and deleted; and one's own password."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import quote

import click
from rich.text import Text

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions, connection_options, read_secret
from repo_node.cli.named import Named
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import printable

USERS = Named("/api/security/users")
PASSWORD_BYTES = 18


@click.group()
def user() -> None:
    """Make, change, unlock and delete users.

    \b
    Examples:
      holdfast user create ci --email ci@example.org --group builders
      holdfast user unlock alice
    """


@user.command("create")
@click.argument("name", metavar="NAME")
@click.option("--email", required=True, metavar="ADDRESS", help="Where people reach them.")
@click.option("--group", "groups", metavar="GROUP", multiple=True, help="A group that they belong to; may be repeated.")
@click.option("--admin", is_flag=True, help="They may do everything.")
@click.option("--must-change", is_flag=True, help="They must change the password before anything else.")
@click.option("--no-password", is_flag=True, help="They use tokens only.")
@click.option(
    "--new-password-file", metavar="FILE", help="Their password; - reads standard input. Default: a random one."
)
@connection_options
def create_user(
    connection: ConnectionOptions,
    name: str,
    email: str,
    groups: tuple[str, ...],
    admin: bool,
    must_change: bool,
    no_password: bool,
    new_password_file: str | None,
) -> None:
    """Make a user. Without a password of your choice, a random one is printed, once.

    \b
    Examples:
      holdfast user create alice --email alice@example.org --must-change
      holdfast user create ci --email ci@example.org --no-password
    """
    if no_password and (new_password_file or must_change):
        raise click.UsageError("--no-password goes without --new-password-file and --must-change")
    password = None
    if not no_password:
        password = read_secret(new_password_file) if new_password_file else secrets.token_urlsafe(PASSWORD_BYTES)
    body: dict[str, Any] = {
        "email": email,
        "admin": admin,
        "groups": list(dict.fromkeys(groups)),
        "mustChangePassword": must_change,
        "internalPasswordDisabled": no_password,
    }
    if password is not None:
        body["password"] = password

    async def work(client: Any) -> None:
        names = [one["name"] for one in await client.call("GET", USERS.path)]
        if name in names:
            raise click.ClickException(f"there is a user {printable(name)} already; see: holdfast user change --help")
        await client.call("PUT", USERS.url_of(name), body=body, has_answer=False)

    run_call(connection, work)
    if password is not None and not new_password_file:
        click.echo(password)
        click.echo(f"User {printable(name)} is made; the password is not shown again.", err=True)
    else:
        click.echo(f"User {printable(name)} is made.", err=True)


@user.command("list")
@AS_JSON
@connection_options
def list_users(connection: ConnectionOptions, as_json: bool) -> None:
    """List all users; those who are locked out are marked.

    \b
    Example:
      holdfast user list
    """

    async def work(client: Any) -> dict[str, Any]:
        return {
            "users": [one["name"] for one in await client.call("GET", USERS.path)],
            "locked": await client.call("GET", "/api/security/lockedUsers"),
        }

    answer = run_call(connection, work, "users", "locked")
    if as_json:
        show_json(answer)
        return
    for name in answer["users"]:
        click.echo(printable(str(name)) + ("  (locked out)" if name in answer["locked"] else ""))


@user.command("show")
@click.argument("name", metavar="NAME")
@AS_JSON
@connection_options
def show_user(connection: ConnectionOptions, name: str, as_json: bool) -> None:
    """Show a user: email, groups, and what is special.

    \b
    Example:
      holdfast user show alice
    """
    answer = USERS.read(connection, name, "name", "groups")
    if as_json:
        show_json(answer)
        return
    table = new_table(f"User {printable(str(answer['name']))}")
    table.add_column("What", no_wrap=True)
    table.add_column("Value", overflow="fold")
    for key, value in answer.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(Text(printable(key)), Text(printable(text)))
    new_console().print(table)


@user.command("change")
@click.argument("name", metavar="NAME")
@click.option("--email", metavar="ADDRESS", help="Where people reach them.")
@click.option("--admin/--no-admin", default=None, help="Whether they may do everything.")
@click.option("--enabled/--disabled", default=None, help="Whether they are let in, by password or token.")
@click.option("--must-change", is_flag=True, help="They must change the password before anything else.")
@click.option("--new-password-file", metavar="FILE", help="Another password; - reads standard input.")
@connection_options
def change_user(
    connection: ConnectionOptions,
    name: str,
    email: str | None,
    admin: bool | None,
    enabled: bool | None,
    must_change: bool,
    new_password_file: str | None,
) -> None:
    """Change what is said of a user; the rest stays.

    \b
    Examples:
      holdfast user change alice --disabled
      holdfast user change alice --new-password-file - --must-change
    """
    said = {"email": email, "admin": admin, "enabled": enabled, "mustChangePassword": must_change or None}
    if new_password_file:
        said |= {"password": read_secret(new_password_file), "internalPasswordDisabled": False}
    body = {key: value for key, value in said.items() if value is not None}
    if not body:
        raise click.UsageError("say what is to be changed")
    USERS.send(connection, "POST", name, body)
    click.echo(f"User {printable(name)} is changed.")


@user.command("delete")
@click.argument("name", metavar="NAME")
@connection_options
def delete_user(connection: ConnectionOptions, name: str) -> None:
    """Delete a user with their tokens and rights. What they deployed stays.

    \b
    Example:
      holdfast user delete alice
    """
    USERS.send(connection, "DELETE", name)
    click.echo(f"User {printable(name)} is deleted.")


@user.command("unlock")
@click.argument("name", metavar="NAME", required=False)
@connection_options
def unlock_user(connection: ConnectionOptions, name: str | None) -> None:
    """Let a user log in again who was locked out; without NAME all users, and all addresses.

    \b
    Example:
      holdfast user unlock alice
    """
    path = "unlockAllUsers" if name is None else f"unlockUsers/{quote(name, safe='')}"
    run_call(connection, lambda client: client.call("POST", f"/api/security/{path}", has_answer=False))
    click.echo("They may log in again.")


@user.command("password")
@connection_options
def change_password(connection: ConnectionOptions) -> None:
    """Change your own password: asks for a new one. Also where nothing else is allowed before that.

    \b
    Example:
      holdfast user password --user alice
    """

    async def work(client: Any) -> None:
        login = client.endpoint.credentials.login()
        if login is None:
            raise click.UsageError("a token has no password: give --user NAME")
        name, old = login
        new = click.prompt(f"New password of {printable(name)}", hide_input=True, confirmation_prompt=True, err=True)
        body = {"userName": name, "oldPassword": old, "newPassword1": new, "newPassword2": new}
        path = f"{USERS.path}/authorization/changePassword"
        await client.call("POST", path, body=body, idempotent=False, has_answer=False)

    run_call(connection, work)
    click.echo("The password is changed, on every node.")
