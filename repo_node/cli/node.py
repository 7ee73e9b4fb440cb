"""Run one node in the foreground, or check the configuration it would run with."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from repo_node import config as node_config
from repo_node.cli.wording import printable, say_bytes

FILE = click.Path(path_type=Path, dir_okay=False)


class ConfigFailure(click.ClickException):
    """A configuration that cannot be used ends with status 2, as wrong usage does."""

    exit_code = 2


def load_config(path: Path) -> node_config.NodeConfig:
    """Read the TOML at ``path``; what is wrong with it ends the command."""
    try:
        return node_config.load(path)
    except node_config.ConfigError as error:
        raise ConfigFailure(str(error)) from None


@click.command()
@click.option("--config", "path", metavar="FILE", type=FILE, required=True, help="The node's TOML file.")
def node(path: Path) -> None:
    """Run one node in the foreground until SIGTERM or Ctrl-C.

    This is what production runs, one node a machine, and what `holdfast up` runs for each of its nodes.
    The database must have been prepared with `holdfast init-db`.

    \b
    Example:
      holdfast check-config /etc/holdfast/node.toml && holdfast node --config /etc/holdfast/node.toml
    """
    config = load_config(path)
    from repo_node import app

    sys.exit(app.run(config))


@click.command("check-config")
@click.argument("path", metavar="FILE", type=FILE)
def check_config(path: Path) -> None:
    """Check a node's configuration file and say what it amounts to.

    Nothing is started and neither the database nor a disk is touched. Exit status 2 when the file cannot be used;
    each line then names the key and what would be right.

    \b
    Example:
      holdfast check-config config/node.example.toml
    """
    click.echo(printable_lines(summary_of(path, load_config(path))))


def summary_of(path: Path, config: node_config.NodeConfig) -> str:
    """Return what a configuration amounts to, in a few lines and without its secrets."""
    database = urlsplit(config.database.dsn)
    http = config.http
    lines = [
        f"{path} is right.",
        f"  node      {config.node.id} in zone {config.node.zone}",
        f"  database  {database.hostname or 'a local socket'}, database {database.path.lstrip('/') or '(by default)'}",
        f"  clients   {http.listen}" + (f", shared {http.shared_listen}" if http.shared_listen else ""),
        f"  metrics   {http.metrics_listen or 'on the listener for clients, with a token'}",
        f"  peers     {config.internal.listen}, reached at {config.internal.url}",
        f"  log       {config.log.format}, {config.log.level}",
    ]
    for shard in config.shards:
        reserve = say_bytes(shard.reserve_bytes)
        lines.append(f"  shard     {shard.path}, weight {shard.weight:g}, keeps {reserve} free")
    return "\n".join(lines)


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
