"""Prepare the database: the one place that runs DDL outside ``up``."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import click

from repo_node.cli.node import FILE, load_config
from repo_node.db.errors import CatalogueError
from repo_node.db.migrate import InitResult
from repo_node.db.migrate import init_db as prepare_database
from repo_node.db.roles import give_rights
from repo_node.dsn import BadDsn, parse_dsn
from repo_node.launch.private import write_private


@click.command("init-db")
@click.option("--dsn", metavar="URL", help="The database; HOLDFAST_DSN in the environment keeps its password private.")
@click.option("--config", "path", metavar="FILE", type=FILE, help="Take the database from a node's TOML file.")
@click.option(
    "--admin-password-file",
    "password_path",
    metavar="FILE",
    type=FILE,
    help="Where the password of a new user admin goes (mode 0600), instead of the terminal.",
)
@click.option("--node-role", metavar="ROLE", help="An existing role that gets the rights of a node, and no others.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def init_db(
    dsn: str | None, path: Path | None, password_path: Path | None, node_role: str | None, as_json: bool
) -> None:
    """Create the database schema, or bring an older one up to this release.

    Safe to run at any time and from several places at once. In a new database it also makes the repository
    generic-local and the user admin, with a random password that is shown once.

    \b
    Examples:
      HOLDFAST_DSN=postgresql://holdfast:secret@db.example:5432/holdfast holdfast init-db
      holdfast init-db --config /etc/holdfast/node.toml --admin-password-file ./admin-password
      holdfast init-db --node-role holdfast_node    # nodes that log in as this role can change no table
    """
    target = find_dsn(dsn, path)
    if password_path is not None and not os.access(password_path.parent, os.W_OK | os.X_OK):
        raise click.UsageError(f"{password_path.parent} is no directory that --admin-password-file can be written to")
    with failures_told(target):
        result = asyncio.run(prepare_database(target))
    kept = keep_password(result.admin_password, password_path)
    click.echo(json.dumps(as_document(result, kept), indent=2) if as_json else "\n".join(describe(result, kept)))
    if node_role is not None:
        # Last: what a new administrator's password is has been told by now.
        with failures_told(target):
            asyncio.run(give_rights(target, node_role))


@contextmanager
def failures_told(dsn: str) -> Iterator[None]:
    """Turn what Postgres refuses into a sentence without the password of ``dsn``."""
    try:
        yield
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, CatalogueError, ValueError) as error:
        reason = hide_password(str(error) or type(error).__name__, dsn)
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            reason += "; log in as the database's owner, with --dsn"
        raise click.ClickException(
            f"the database is not ready: {reason}\n"
            "Correct this and run init-db again; what it had applied by then stays."
        ) from None


def find_dsn(dsn: str | None, path: Path | None) -> str:
    """Return the DSN that the options or HOLDFAST_DSN name. Raises ``click.UsageError``."""
    if dsn is not None and path is not None:
        raise click.UsageError("give either --dsn or --config, not both")
    if path is not None:
        return load_config(path).database.dsn
    found = dsn or os.environ.get("HOLDFAST_DSN")
    if not found:
        raise click.UsageError("no database is named; give --config FILE or --dsn URL, or set HOLDFAST_DSN")
    if urlsplit(found).scheme not in ("postgres", "postgresql"):
        raise click.UsageError(
            "the DSN is not a Postgres URL; write for example postgresql://holdfast@db.example:5432/holdfast"
        )
    try:
        parse_dsn(found)
    except BadDsn as error:
        raise click.UsageError(f"the DSN cannot be used: {error}") from None
    return found


def hide_password(text: str, dsn: str) -> str:
    """Return ``text`` without the DSN and without the password in it, as written or decoded."""
    text = text.replace(dsn, "the DSN")
    try:
        password = urlsplit(dsn).password
    except ValueError:
        password = None
    for secret in {password, unquote(password or "")} - {None, ""}:
        text = text.replace(str(secret), "***")
    return text


def keep_password(password: str | None, path: Path | None) -> Path | None:
    """Write a new password to ``path`` and return that; None where it is for the terminal.

    A file that cannot be written is no reason to lose the password: then it is shown after all.
    """
    if password is None or path is None:
        return None
    try:
        write_private(path, password + "\n")
    except OSError as error:
        click.echo(f"{path} cannot be written ({error.strerror}), so the password is shown here instead.", err=True)
        return None
    return path


def as_document(result: InitResult, kept: Path | None) -> dict[str, object]:
    document: dict[str, object] = {"version": result.version, "applied": list(result.applied)}
    if result.admin_password is not None:
        document["admin_user"] = "admin"
        if kept is None:
            document["admin_password"] = result.admin_password
        else:
            document["admin_password_file"] = str(kept)
    return document


def describe(result: InitResult, kept: Path | None) -> list[str]:
    if result.applied:
        lines = [f"Applied {', '.join(result.applied)}; the schema is at version {result.version}."]
    else:
        lines = [f"Nothing to apply: the schema is at version {result.version}, as this release needs it."]
    if result.admin_password is None:
        return lines
    if kept is not None:
        return [*lines, f"Made the user admin; its password is in {kept}, which only you can read."]
    return [*lines, f"Made the user admin with the password {result.admin_password} - keep it, it is not shown again."]
