"""The cluster's settings: list, read, change."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import quote

import click
from rich.table import Table
from rich.text import Text

from repo_node.cli.answers import AS_JSON, show_json
from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions, connection_options
from repo_node.cli.tables import new_console, new_table
from repo_node.cli.wording import printable


@click.group()
def settings() -> None:
    """List, read and change the settings that all nodes share.

    They are kept in Postgres, checked when they are set, and hold on every node within a second.

    \b
    Examples:
      holdfast settings list
      holdfast settings set redundancy 3
      holdfast settings reset redundancy
    """


@settings.command("list")
@click.option("--changed", is_flag=True, help="Only those that somebody has set.")
@AS_JSON
@connection_options
def list_settings(connection: ConnectionOptions, changed: bool, as_json: bool) -> None:
    """List every setting with its value and its meaning.

    A value that somebody has set is marked with a star and followed by its default; the others are defaults.

    \b
    Examples:
      holdfast settings list --changed
      holdfast settings list --json
    """
    answer = run_call(connection, lambda client: client.call("GET", "/api/holdfast/settings"), "settings")
    shown = [row for row in answer["settings"] if row["is_set"] or not changed]
    if as_json:
        show_json(answer | {"settings": shown})
    elif shown:
        new_console().print(table_of(shown))
    else:
        click.echo("Every setting has its default.")


@settings.command("get")
@click.argument("key", metavar="NAME")
@AS_JSON
@connection_options
def get_setting(connection: ConnectionOptions, key: str, as_json: bool) -> None:
    """Print the value of one setting, as JSON.

    \b
    Example:
      holdfast settings get redundancy
    """
    answer = run_call(connection, lambda client: client.call("GET", url_path_of(key)), "value")
    click.echo(json.dumps(answer, indent=2) if as_json else json.dumps(answer["value"]))


# A value may be -1: options that do not exist are values here.
@settings.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("key", metavar="NAME")
@click.argument("value", metavar="VALUE")
@AS_JSON
@connection_options
def set_setting(connection: ConnectionOptions, key: str, value: str, as_json: bool) -> None:
    """Change one setting on every node. VALUE is a number, true, false, null or a "quoted text".

    A value that may be set, but puts content at risk, is told on standard error.

    \b
    Examples:
      holdfast settings set redundancy 3
      holdfast settings set write_quorum null
    """
    parsed = parse_value(key, value)
    answer = run_call(connection, lambda client: client.call("PUT", url_path_of(key), body={"value": parsed}), "value")
    if as_json:
        show_json(answer)
    else:
        click.echo(f"{key} is {json.dumps(answer['value'])} now, on every node within a second.")
    if warning := answer.get("warning"):
        click.echo(printable(f"Warning: {warning}."), err=True)


@settings.command("reset")
@click.argument("key", metavar="NAME")
@AS_JSON
@connection_options
def reset_setting(connection: ConnectionOptions, key: str, as_json: bool) -> None:
    """Give one setting its default back, on every node.

    \b
    Example:
      holdfast settings reset redundancy
    """
    answer = run_call(connection, lambda client: client.call("DELETE", url_path_of(key)), "value")
    if as_json:
        show_json(answer)
    else:
        click.echo(
            f"{printable(key)} is {json.dumps(answer['value'])} now, as by default, on every node within a second."
        )


def parse_value(key: str, text: str) -> Any:
    """Return the JSON scalar that ``text`` is. Raises ``click.UsageError``."""
    from repo_node.settings import SettingError, parse

    if text == "default":
        raise click.UsageError(f"to give {printable(key)} its default back: holdfast settings reset {printable(key)}")
    try:
        value = parse(key, text)
    except SettingError as error:
        raise click.UsageError(printable(str(error))) from None
    if isinstance(value, dict | list) or (isinstance(value, float) and not math.isfinite(value)):
        raise click.UsageError(f"{key}: {printable(text)} is not a single value; write a number, true, false or null")
    return value


def url_path_of(key: str) -> str:
    return f"/api/holdfast/settings/{quote(key, safe='')}"


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = new_table("Settings")
    table.add_column("Name", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("Meaning", ratio=1)
    for row in rows:
        value, default, warning = json.dumps(row["value"]), json.dumps(row["default"]), row.get("warning")
        remarks = (f" (default {default})" if row["is_set"] else "") + (f"; {warning}" if warning else "")
        table.add_row(
            Text(printable(str(row["key"]))),
            Text(printable(f"{value} *" if row["is_set"] else value)),
            Text(printable(str(row["description"]) + remarks)),
        )
    return table
