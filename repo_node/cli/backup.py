"""Back the metadata up to a file, and restore a lost database from one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import click

from repo_node.backups import restore as restoring
from repo_node.backups.backup import write_backup
from repo_node.cli.database import find_dsn, hide_password
from repo_node.cli.node import FILE
from repo_node.cli.wording import say_bytes, say_count
from repo_node.db.errors import CatalogueError
from repo_node.db.servers import Servers
from repo_node.db.snapshot import NotEmpty

CONNECT_SECONDS = 10.0

DSN = click.option(
    "--dsn", metavar="URL", help="The database; HOLDFAST_DSN in the environment keeps its password private."
)
CONFIG = click.option(
    "--config", "config", metavar="FILE", type=FILE, help="Take the database from a node's TOML file."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print what the backup holds as JSON.")


@click.command()
@click.argument("path", metavar="FILE", type=FILE)
@DSN
@CONFIG
@AS_JSON
def backup(path: Path, dsn: str | None, config: Path | None, as_json: bool) -> None:
    """Write a consistent snapshot of the metadata to FILE, while the cluster works.

    It holds repositories, artifacts, users, tokens, settings and where each replica is - not the binaries, which stay
    on the shards. FILE appears when it is whole, is readable by you alone, and must not exist yet. Keep it elsewhere
    than on the database's machine, and keep removal_delay_seconds above the age of the oldest one you would restore.

    \b
    Example:
      holdfast backup --config /etc/holdfast/node.toml /backup/holdfast-$(date +%F)
    """
    if path.exists():
        raise click.UsageError(f"{path} exists already; name a new file")
    target = find_dsn(dsn, config)
    described = run(target, lambda connection: write_backup(connection, path, say_table))
    tell(described, as_json, f"Wrote {path}")


@click.command()
@click.argument("path", metavar="FILE", type=FILE)
@DSN
@CONFIG
@click.option("--check", is_flag=True, help="Read FILE to its end and say what it holds; touch no database.")
@AS_JSON
def restore(path: Path, dsn: str | None, config: Path | None, check: bool, as_json: bool) -> None:
    """Fill an empty database from a backup. It happens whole or not at all; no node may run meanwhile.

    The schema is made first where there is none: log in as the database's owner. Where nodes log in as another role,
    give it its rights again, by `holdfast init-db --node-role`. Afterwards start the nodes: every artifact of the
    backup can be read again. Deletions are held until you release them; `holdfast rebuild` finds what was uploaded
    after the backup.

    \b
    Examples:
      holdfast restore --check /backup/holdfast-2031-05-04
      holdfast restore --dsn postgresql://owner:secret@db.example/holdfast /backup/holdfast-2031-05-04
    """
    if check:
        try:
            described = restoring.check_backup(path)
        except (restoring.BadBackup, OSError) as error:
            raise click.ClickException(f"{path} cannot be restored: {error}") from None
        tell(described, as_json, f"{path} is whole")
        return
    target = find_dsn(dsn, config)
    described = run(target, lambda connection: restoring.restore_backup(connection, path, say_table))
    tell(described, as_json, f"Restored {path}")


def run(dsn: str, work: Callable[[asyncpg.Connection], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Run ``work`` on a connection of its own. Failures become sentences and status 1."""

    async def connected() -> dict[str, Any]:
        connection = await Servers(dsn, timeout_seconds=CONNECT_SECONDS).connect()
        try:
            return await work(connection)
        finally:
            connection.terminate()

    try:
        return asyncio.run(connected())
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        CatalogueError,
        ValueError,
        NotEmpty,
        restoring.BadBackup,
    ) as error:
        reason = hide_password(str(error) or type(error).__name__, dsn)
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            reason += "; log in as the database's owner, with --dsn"
        raise click.ClickException(f"nothing was changed: {reason}") from None


def say_table(table: str, rows: int) -> None:
    if rows:
        click.echo(f"  {table}: {say_count(rows, 'row')}", err=True)


def tell(described: dict[str, Any], as_json: bool, what: str) -> None:
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    rows = described["rows"]
    click.echo(
        f"{what}: {say_bytes(described['bytes'])}, cluster {described['cluster_id']} as of {described['taken_at']}, "
        f"{say_count(rows.get('artifacts', 0), 'artifact')}, {say_count(rows.get('blobs', 0), 'blob')}, "
        f"{say_count(rows.get('replicas', 0), 'replica')}."
    )
