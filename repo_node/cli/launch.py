"""``holdfast up`` and ``holdfast down``: a whole cluster on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from repo_node.launch.background import start_in_background
from repo_node.launch.cluster import Supervisor
from repo_node.launch.errors import LaunchError, OutOfRange
from repo_node.launch.layout import Layout
from repo_node.launch.plan import Options
from repo_node.launch.reporter import ConsoleReporter, Reporter
from repo_node.launch.shutdown import bring_down

DATA_DEFAULT = Path("holdfast-data")
data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DATA_DEFAULT,
    show_default=f"./{DATA_DEFAULT}",
    help="Directory of the cluster.",
)


@contextmanager
def report_errors() -> Iterator[ConsoleReporter]:
    """Yield a reporter on the terminal; turn what went wrong into a message and exit status 1, or 2 of wrong usage."""
    reporter = ConsoleReporter(Console())
    try:
        yield reporter
    except OutOfRange as error:
        reporter.close()
        raise click.UsageError(str(error), click.get_current_context()) from None
    except LaunchError as error:
        reporter.close()
        raise click.ClickException(str(error)) from None
    except PermissionError as error:
        reporter.close()
        raise click.ClickException(f"{error.filename}: no permission; is the cluster another user's?") from None
    finally:
        reporter.close()


@click.command()
@click.option("--nodes", type=int, help="Number of nodes.  [default: as before, else 3]")
@click.option("--zones", type=int, help="Zones the nodes are spread over.  [default: as before, else 3]")
@click.option("--shards", type=int, help="Shard directories of each node.  [default: as before, else 2]")
@click.option("--redundancy", type=int, help="First value of the setting: copies of every blob.  [default: 2]")
@click.option(
    "--port", type=int, help="Front port, shared by all nodes; theirs follow it.  [default: as before, else 8080]"
)
@click.option(
    "--workers", type=int, help="Processes of each node, which share its shards.  [default: as before, else 1]"
)
@click.option(
    "--tls",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    metavar="DIR",
    help="TLS from now on, for clients and between nodes: ca.crt, and node-1.crt, node-1.key, ... in DIR.",
)
@data_option
@click.option("--detach", is_flag=True, help="Return when the cluster is ready, and leave it running.")
def up(
    nodes: int | None,
    zones: int | None,
    shards: int | None,
    redundancy: int | None,
    port: int | None,
    workers: int | None,
    tls: Path | None,
    data: Path,
    detach: bool,
) -> None:
    """Start Postgres and a cluster of nodes on this machine.

    A second run finds the same data. Ctrl-C stops everything. A node that dies is not started again:
    you are told how to do it.
    """
    layout = Layout(data.resolve())
    options = Options(nodes, zones, shards, redundancy, port, workers, tls)

    down_line = shlex.join(["holdfast", "down", "--data", str(layout.directory)])
    hint = f"Stop it with: {down_line}" if detach else f"Stop it with Ctrl-C, or with: {down_line}"

    def run(reporter: Reporter) -> None:
        Supervisor(layout, options, reporter, stop_hint=hint).run()

    with report_errors() as reporter:
        if detach:
            start_in_background(run, layout.up_log, reporter)
        else:
            run(reporter)


@click.command()
@data_option
def down(data: Path) -> None:
    """Stop the cluster that ``up`` started, also what a killed ``up`` left behind."""
    layout = Layout(data.resolve())
    with report_errors() as reporter:
        ran = bring_down(layout, reporter)
        reporter.say("Stopped." if ran else f"Nothing was running under {layout.directory}.")
