"""Taking a cluster down: nodes first, then Postgres, also what a killed ``up`` left behind."""

from __future__ import annotations

import signal
from dataclasses import replace

from repo_node.launch import nodes, processes
from repo_node.launch.errors import DirectoryBusy, LaunchError
from repo_node.launch.layout import ClusterRecord, Layout
from repo_node.launch.lock import hold_directory
from repo_node.launch.postgres import STOP_TIMEOUT_SECONDS, EmbeddedPostgres
from repo_node.launch.reporter import Reporter
from repo_node.launch.signals import StopRequests

# Beyond what its configuration allows: a node that has not cut itself off by then is killed.
NODE_END_SECONDS = 5.0


def stop_leftovers(layout: Layout, reporter: Reporter, stops: StopRequests) -> None:
    """Stop nodes that still run because the ``up`` that started them was killed."""
    if any(nodes.find_nodes(layout.configs()).values()):
        reporter.say("Nodes of an earlier run are still there; stopping them first.")
        stop_nodes(layout, reporter, stops)


def stop_nodes(layout: Layout, reporter: Reporter, stops: StopRequests) -> int:
    """Stop every node of the cluster, whoever started it; return how many there were."""
    running = [config for config, pids in nodes.find_nodes(layout.configs()).items() if pids]
    if not running:
        return 0
    seconds = layout.find_drain_seconds() + NODE_END_SECONDS
    names = ", ".join(config.parent.name for config in running)
    reporter.step(f"Stopping {names} (they finish what is in flight, at most {seconds:.0f} s)")
    for config in nodes.stop_nodes(running, seconds, lambda: stops.urgent):
        why = "somebody asked twice" if stops.urgent else f"it did not end within {seconds:.0f} s"
        reporter.say(f"{config.parent.name} was killed: {why}.")
    return len(running)


def stop_cluster(layout: Layout, postgres: EmbeddedPostgres, reporter: Reporter, stops: StopRequests) -> bool:
    """Stop all nodes, then Postgres; return whether anything ran."""
    count = stop_nodes(layout, reporter, stops)
    ran = postgres.pid is not None
    if ran:
        reporter.step("Stopping Postgres")
    postgres.stop()
    return ran or count > 0


def bring_down(layout: Layout, reporter: Reporter) -> bool:
    """Stop the cluster under ``layout`` with its supervisor, dead or alive; return whether anything ran.

    Raises ``LaunchError`` when something cannot be stopped.
    """
    if not layout.directory.is_dir():
        return False
    supervised = stop_supervisor(layout, reporter)
    with hold_directory(layout.directory):
        ran = stop_cluster(layout, EmbeddedPostgres(layout.postgres), reporter, StopRequests())
        record = layout.read_record()
        if record is not None and ran:
            layout.write_record(without_pids(record))
    return ran or supervised


def without_pids(record: ClusterRecord) -> ClusterRecord:
    stopped = tuple(replace(node, pid=None) for node in record.nodes)
    return replace(record, up_pid=None, postgres_pid=None, nodes=stopped)


def stop_supervisor(layout: Layout, reporter: Reporter) -> bool:
    """Ask the ``up`` that holds the directory to stop, and wait for it; return whether there was one."""
    pid = find_holder(layout)
    if pid is None:
        return False
    reporter.step(f"Stopping the cluster of process {pid}")
    processes.send_signal(pid, signal.SIGTERM)
    seconds = layout.find_drain_seconds() + NODE_END_SECONDS + STOP_TIMEOUT_SECONDS
    if not processes.wait_until(lambda: find_holder(layout) != pid, seconds):
        reporter.say(f"Process {pid} did not stop within {seconds:.0f} s; killing it.")
        processes.send_signal(pid, signal.SIGKILL)
        if not processes.wait_until(lambda: find_holder(layout) != pid, nodes.KILL_TIMEOUT_SECONDS):
            raise LaunchError(f"process {pid} holds {layout.directory} and cannot be killed")
    return True


def find_holder(layout: Layout) -> int | None:
    """Return the pid of the process that works on the directory now."""
    try:
        with hold_directory(layout.directory):
            return None
    except DirectoryBusy as busy:
        return busy.pid
