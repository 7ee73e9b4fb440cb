"""Run one node in the foreground, check its configuration, direct the nodes of a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import click
from rich.text import Text

from repo_node import config as node_config
from repo_node.cli.calls import check_answer, run_call
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.node_table import node_release, node_state
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import printable, say_bytes, say_copies
from repo_node.client.rest import Client
from repo_node.dsn import name_server, parse_dsn
from repo_node.tls import certificates
from repo_node.tls.certificates import moment

NODES_PATH = "/api/holdfast/nodes"
POLL_SECONDS, LINE_SECONDS = 0.5, 10.0
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


def check_certificates(path: Path, config: node_config.NodeConfig) -> None:
    """Read the certificates that ``config`` names; what is wrong with them ends the command."""
    if faults := [f"{path}: {fault}" for fault in certificates.faults_of(config)]:
        raise ConfigFailure("\n".join(faults))


@click.group(invoke_without_command=True)
@click.option("--config", "path", metavar="FILE", type=FILE, help="The node's TOML file: run this node.")
@click.pass_context
def node(context: click.Context, path: Path | None) -> None:
    """Run one node in the foreground until SIGTERM or Ctrl-C, or list, stop, drain and remove the cluster's nodes.

    With --config it is what production runs, one node a machine, and what `holdfast up` runs for each of its
    nodes. The database must have been prepared with `holdfast init-db`.

    \b
    Examples:
      holdfast check-config /etc/holdfast/node.toml && holdfast node --config /etc/holdfast/node.toml
      holdfast node stop node-3      for maintenance: it serves what it has, and ends
      holdfast node drain node-3     for good: its copies move elsewhere
    """
    if context.invoked_subcommand is not None:
        if path is not None:
            raise click.UsageError("--config runs a node; it goes with no other command.")
        return
    if path is None:
        raise click.UsageError(
            "Missing option '--config', or one of the commands list, stop, drain, activate, reload, remove."
        )
    config = load_config(path)
    check_certificates(path, config)
    from repo_node import app

    sys.exit(app.run(config, lambda: node_config.load(path).shards))


@node.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
@connection_options
def list_nodes(connection: ConnectionOptions, as_json: bool) -> None:
    """List the nodes and how many copies are on their shards."""
    answer = run_call(connection, lambda client: client.call("GET", NODES_PATH), "nodes")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    table = new_table("Nodes")
    for name in ("Node", "Zone", "State", "Version"):
        table.add_column(name, overflow="fold")
    table.add_column("Copies", justify="right", no_wrap=True)
    table.add_column("Shards", overflow="fold")
    for row in answer["nodes"]:
        table.add_row(
            Text(printable(str(row["id"]))),
            Text(printable(str(row["zone"]))),
            node_state(row),
            node_release(row),
            say_copies(
                sum(shard["replicas"] for shard in row["shards"]),
                is_counted=all(shard.get("replicas_counted", True) for shard in row["shards"]),
            ),
            Text(printable(", ".join(f"{shard['id']} {shard['state']}" for shard in row["shards"]))),
        )
    new_console().print(table)


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--wait", is_flag=True, help="Wait until it has ended; ask another node, or the load balancer.")
@connection_options
def stop(connection: ConnectionOptions, name: str, wait: bool) -> None:
    """Take a node out of service for maintenance: it takes nothing new, serves what it has, hands over, and ends.

    It does what SIGTERM does. Its copies stay, and count: start it again within `lost_after_seconds`.

    \b
    Example:
      holdfast node stop node-3 --wait
    """
    path = f"{NODES_PATH}/{quote(name, safe='')}/stop"
    run_call(connection, lambda client: client.call("POST", path, body={}), "outcome")
    click.echo(f"Node {printable(name)} is leaving.")
    if wait:
        run_call(connection, lambda client: until_down(client, name))
        click.echo(f"Node {printable(name)} has left.")


async def until_down(client: Client, name: str) -> None:
    while True:
        answer = check_answer(client.endpoint, await client.call("GET", NODES_PATH), ("nodes",))
        if not any(row["id"] == name and row["up"] for row in answer["nodes"]):
            return
        await asyncio.sleep(POLL_SECONDS)


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--wait", is_flag=True, help="Wait until nothing is left on them; Ctrl-C ends the waiting alone.")
@connection_options
def drain(connection: ConnectionOptions, name: str, wait: bool) -> None:
    """Move every copy off all shards of a node; it goes on to serve. `holdfast shard list` shows how far it is.

    For a restart or an upgrade that is not needed: `holdfast node stop`.
    """
    change_node(connection, name, "drain")
    click.echo(f"The shards of {printable(name)} are draining.")
    if wait:
        run_call(connection, lambda client: until_empty(client, name))
        click.echo(f"No copies are left on {printable(name)}.")


async def until_empty(client: Client, name: str) -> None:
    """Say how many copies are left on a draining node until none is. Raises ``ClickException`` if it drains no more."""
    console, quiet_seconds = new_console(stderr=True), LINE_SECONDS
    while True:
        answer = check_answer(client.endpoint, await client.call("GET", NODES_PATH), ("nodes",))
        shards = [shard for row in answer["nodes"] if row["id"] == name for shard in row["shards"]]
        if any(shard["state"] == "active" for shard in shards):
            raise click.ClickException(f"A shard of {printable(name)} was taken into use again.")
        draining = [shard for shard in shards if shard["state"] == "draining"]
        left = sum(shard["replicas"] for shard in draining)
        counted = all(shard.get("replicas_counted", True) for shard in draining)
        if counted and not left:
            return
        quiet_seconds += POLL_SECONDS
        if quiet_seconds >= LINE_SECONDS:
            quiet_seconds = 0.0
            console.print(f"{printable(name)}: {say_copies(left, is_counted=counted, unit=True)} left")
        await asyncio.sleep(POLL_SECONDS)


@node.command()
@click.argument("name", metavar="NODE")
@connection_options
def activate(connection: ConnectionOptions, name: str) -> None:
    """Take all shards of a node into use again."""
    change_node(connection, name, "activate")
    click.echo(f"The shards of {printable(name)} are in use.")


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--shard", "path", metavar="DIRECTORY", help="Where an empty disk takes another one's place.")
@connection_options
def reload(connection: ConnectionOptions, name: str, path: str | None) -> None:
    """Let a node read the list of shards in its file again: it opens new ones and gives up those that are gone.

    An empty directory whose disk was replaced becomes a new shard only when it is named. Other changes of the file wait
    for a restart.

    \b
    Example:
      holdfast node reload node-1 --shard /srv/disk3
    """
    url, body = f"{NODES_PATH}/{quote(name, safe='')}/reload", {} if path is None else {"shard": os.path.abspath(path)}
    run_call(connection, lambda client: client.call("POST", url, body=body), "outcome")
    click.echo(f"{printable(name)} reads its list of shards again; `holdfast shard list` shows what came of it.")


@node.command()
@click.argument("name", metavar="NODE")
@connection_options
def remove(connection: ConnectionOptions, name: str) -> None:
    """Forget a node that is stopped and whose shards have been removed."""
    run_call(connection, lambda client: client.call("DELETE", f"{NODES_PATH}/{quote(name, safe='')}"), "outcome")
    click.echo(f"Node {printable(name)} is removed.")


def change_node(connection: ConnectionOptions, name: str, action: str) -> None:
    path = f"{NODES_PATH}/{quote(name, safe='')}/{action}"
    run_call(connection, lambda client: client.call("POST", path, body={}), "shards")


@click.command("check-config")
@click.argument("path", metavar="FILE", type=FILE)
def check_config(path: Path) -> None:
    """Check a node's configuration file, and the certificates it names, and say what it amounts to.

    Nothing is started and neither the database nor a disk is touched. Exit status 2 when the file cannot be used;
    each line then names the key and what would be right.

    \b
    Example:
      holdfast check-config config/node.example.toml
    """
    config = load_config(path)
    check_certificates(path, config)
    click.echo(printable_lines(summary_of(path, config)))


def summary_of(path: Path, config: node_config.NodeConfig) -> str:
    """Return what a configuration amounts to, in a few lines and without its secrets."""
    database = urlsplit(config.database.dsn)
    servers = ", ".join(map(name_server, parse_dsn(config.database.dsn).servers)) or "a local socket"
    http = config.http
    lines = [
        f"{path} is right.",
        f"  node      {config.node.id} in zone {config.node.zone}" + say_processes(config.node.workers),
        f"  database  {servers}, database {database.path.lstrip('/') or '(by default)'}",
        f"  clients   {http.listen}"
        + (f", shared {http.shared_listen}" if http.shared_listen else "")
        + say_tls(config, "http"),
        f"  metrics   {http.metrics_listen or 'on the listener for clients, with a token'}",
        f"  peers     {config.internal.listen}, reached at {config.internal.url}" + say_tls(config, "internal"),
        f"  log       {config.log.format}, {config.log.level}",
    ]
    for shard in config.shards:
        reserve = say_bytes(shard.reserve_bytes)
        weight = "by capacity" if shard.weight is None else f"{shard.weight:g}"
        lines.append(f"  shard     {shard.path}, weight {weight}, keeps {reserve} free")
    return "\n".join(lines)


def say_tls(config: node_config.NodeConfig, section: str) -> str:
    if (read := certificates.readers(config).get(section)) is None:
        return ""
    tls = config.internal.tls
    mode = "" if section == "http" or tls is None else f" {tls.mode}"
    return f", TLS{mode} with a certificate until {moment(read().ends_at)}"


def say_processes(workers: int) -> str:
    return f", {workers} processes" if workers > 1 else ""


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
