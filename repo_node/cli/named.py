"""What the cluster knows by names below one URL: users, groups, permission targets, repositories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click

from repo_node.cli.answers import show_json
from repo_node.cli.calls import run_call
from repo_node.cli.connection import ConnectionOptions
from repo_node.cli.wording import printable


@dataclass(frozen=True, slots=True)
class Named:
    """Documents below ``path``, each at its name."""

    path: str

    def url_of(self, name: str) -> str:
        return f"{self.path}/{quote(name, safe='')}"

    def show_names(self, connection: ConnectionOptions, *, as_json: bool, none: str) -> None:
        """Print all names, or ``none`` where there are none."""
        names = [one["name"] for one in run_call(connection, lambda client: client.call("GET", self.path))]
        if as_json:
            show_json(names)
        else:
            click.echo("\n".join(map(printable, names)) or none)

    def read(self, connection: ConnectionOptions, name: str, *keys: str, query: str = "") -> Any:
        """Return a document that has ``keys``."""
        return run_call(connection, lambda client: client.call("GET", self.url_of(name) + query), *keys)

    def send(self, connection: ConnectionOptions, method: str, name: str, body: Any = None) -> None:
        """Make, change or delete a document."""
        run_call(connection, lambda client: client.call(method, self.url_of(name), body=body, has_answer=False))
