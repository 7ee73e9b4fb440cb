"""How the cluster's answers are shown: as JSON where that is asked for."""

from __future__ import annotations

import json
from typing import Any

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")


def show_json(answer: Any) -> None:
    click.echo(json.dumps(answer, indent=2))
