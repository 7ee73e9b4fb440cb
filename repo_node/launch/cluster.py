"""The supervisor behind ``up``: it brings up Postgres and the nodes, tells when one dies, and takes all down again."""

from __future__ import annotations

import asyncio
import os
import socket
import textwrap
import time
from collections.abc import Sequence

import asyncpg

from repo_node.config import DatabaseSection
from repo_node.db import databases, migrate, roles
from repo_node.launch import nodes, ports, private, processes
from repo_node.launch.errors import LaunchError, NodeFailed, StartInterrupted
from repo_node.launch.layout import ClusterRecord, Layout, NodeRecord
from repo_node.launch.lock import hold_directory
from repo_node.launch.nodes import NodeProcess
from repo_node.launch.plan import ClusterPlan, Options, make_plan
from repo_node.launch.postgres import EmbeddedPostgres
from repo_node.launch.reporter import Reporter
from repo_node.launch.shutdown import stop_cluster, stop_leftovers
from repo_node.launch.signals import StopRequests
from repo_node.launch.summary import describe_cluster

DATABASE = "holdfast"
NODE_ROLE = "holdfast_node"
READY_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.25
POSTGRES_RETRY_SECONDS = 5.0
CONNECTIONS_MIN = 200
# Room for what runs beside the pools of the nodes: their listeners, and an administrator.
SPARE_CONNECTIONS = 100


class Supervisor:
    """One run of a cluster.

    ``stop_hint`` tells the user how to stop it; ``node_command`` starts a node when ``--config FILE`` is
    put after it.
    """

    def __init__(
        self,
        layout: Layout,
        options: Options,
        reporter: Reporter,
        *,
        stop_hint: str = "",
        node_command: Sequence[str] | None = None,
    ) -> None:
        self._layout = layout
        self._options = options
        self._reporter = reporter
        self._stop_hint = stop_hint
        self._node_command = node_command or nodes.NODE_COMMAND
        self._stops = StopRequests()
        self._nodes: list[NodeProcess] = []
        self._postgres = EmbeddedPostgres(layout.postgres)
        self._dsn = ""
        self._node_dsn = ""

    def run(self) -> None:
        """Start the cluster, look after it until somebody asks to stop, and stop it.

        Raises ``LaunchError`` when it cannot be started; what was started is stopped then too.
        """
        private.make_private_directory(self._layout.directory)
        with self._stops, hold_directory(self._layout.directory):
            plan = make_plan(self._options, self._layout.find_nodes(), self._layout.find_front_port())
            stop_leftovers(self._layout, self._reporter, self._stops)
            with self._claim_ports(plan):
                try:
                    self._start(plan)
                    self._watch(plan)
                finally:
                    self._stop(plan)

    def _claim_ports(self, plan: ClusterPlan) -> socket.socket:
        owners = {port: node.id for node in plan.nodes for port in (node.port, node.internal_port)}
        claim = ports.claim_front_port(plan.port)
        try:
            ports.check_node_ports(owners)
        except BaseException:
            claim.close()
            raise
        return claim

    def _start(self, plan: ClusterPlan) -> None:
        self._start_postgres(plan)
        self._check_stop()
        self._init_database(plan)
        self._check_stop()
        self._layout.ensure_cluster_key()
        for node in plan.nodes:
            self._layout.write_node(node, plan, self._node_dsn)
            self._nodes.append(NodeProcess(node, self._layout.config(node.id), self._layout.log(node.id)))
        for process in self._nodes:
            process.start(self._node_command)
        self._record(plan, os.getpid())
        self._wait_until_ready()
        self._reporter.say(f"{describe_cluster(plan, self._layout)}\n{self._stop_hint}")
        self._reporter.ready()

    def _start_postgres(self, plan: ClusterPlan) -> None:
        self._reporter.step("Starting Postgres")
        pool = DatabaseSection.model_fields["pool_connections_max"].default
        connections = max(CONNECTIONS_MIN, len(plan.nodes) * (pool + plan.workers) + SPARE_CONNECTIONS)
        self._postgres = EmbeddedPostgres(self._layout.postgres, settings={"max_connections": str(connections)})
        self._postgres.start()
        self._dsn = self._postgres.dsn(DATABASE)

    def _init_database(self, plan: ClusterPlan) -> None:
        """Bring the schema up to date; the password is on disk before the database knows it, so it cannot get lost."""
        self._reporter.step("Preparing the database")
        password, is_new = self._layout.ensure_admin_password()
        first, of_nodes = {"redundancy": plan.redundancy}, self._layout.ensure_database_password()
        self._node_dsn = self._postgres.files.dsn(DATABASE, NODE_ROLE, of_nodes)

        async def prepare() -> migrate.InitResult:
            await databases.ensure_database(self._postgres.dsn("postgres"), DATABASE)
            result = await migrate.init_db(self._dsn, first_settings=first, admin_password=password)
            await roles.ensure_role(self._dsn, NODE_ROLE, of_nodes)
            await roles.give_rights(self._dsn, NODE_ROLE)
            return result

        try:
            result = asyncio.run(prepare())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise LaunchError(f"the database cannot be prepared: {cause}; see {self._postgres.files.log}") from error
        if result.admin_password is None:
            if is_new:
                self._layout.admin_password.unlink()
            if self._options.redundancy is not None:
                self._reporter.say(
                    "The cluster exists: --redundancy only sets the first value. "
                    f"To change it: holdfast settings set redundancy {plan.redundancy}"
                )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        waiting: list[NodeProcess] = []
        still = list(self._nodes)
        while still:
            if still != waiting:
                self._reporter.step(f"Waiting for {', '.join(process.plan.id for process in still)}")
            waiting = still
            for process in waiting:
                if ended := process.find_end():
                    raise NodeFailed(f"{process.plan.id} {ended} while it started. {quote_log(process)}")
            if time.monotonic() > deadline:
                raise NodeFailed(
                    f"{waiting[0].plan.id} is not ready after {READY_TIMEOUT_SECONDS:.0f} s. {quote_log(waiting[0])}"
                )
            self._check_stop()
            time.sleep(POLL_SECONDS / 5)
            still = [process for process in waiting if not process.is_ready()]

    def _watch(self, plan: ClusterPlan) -> None:
        """Look after the cluster until somebody asks to stop."""
        while not self._stops.asked:
            time.sleep(POLL_SECONDS)
            changed = [self._look_after(process) for process in self._nodes]
            if self._postgres.pid is None and not self._stops.asked:
                self._restart_postgres()
                changed.append(True)
            if any(changed):
                self._record(plan, os.getpid())

    def _look_after(self, process: NodeProcess) -> bool:
        """Tell when a node ended or is back; return whether either happened."""
        if ended := process.find_end():
            self._reporter.say(
                f"{process.plan.id} {ended}; the others go on. {quote_log(process)}\n"
                f"Start it again with: {nodes.start_command(process.config)}"
            )
            return True
        if process.pid is None and (found := nodes.find_nodes([process.config])[process.config]):
            process.adopt(found[0])
            self._reporter.say(f"{process.plan.id} runs again, as process {found[0]}.")
            return True
        return False

    def _restart_postgres(self) -> None:
        """Bring Postgres back: without it nothing works, and nobody can start it by hand."""
        self._reporter.say(f"Postgres ended; starting it again. The end of its log:\n{self._postgres_log_tail()}")
        try:
            self._postgres.start()
        except LaunchError as error:
            self._reporter.say(f"{error}\nTrying again in {POSTGRES_RETRY_SECONDS:.0f} s.")
            processes.wait_until(lambda: self._stops.asked, POSTGRES_RETRY_SECONDS)
            return
        if self._postgres.dsn(DATABASE) != self._dsn:
            self._reporter.say("Somebody took the port of Postgres, and it has a new one: stop, and run up again.")
        self._reporter.say("Postgres runs again.")

    def _postgres_log_tail(self) -> str:
        return textwrap.indent(private.read_tail(self._postgres.files.log, lines_max=6), "    ")

    def _stop(self, plan: ClusterPlan) -> None:
        stop_cluster(self._layout, self._postgres, self._reporter, self._stops)
        for process in self._nodes:
            process.find_end()
        if self._dsn:
            self._record(plan, up_pid=None)
        self._reporter.say("Stopped.")

    def _record(self, plan: ClusterPlan, up_pid: int | None) -> None:
        self._layout.write_record(
            ClusterRecord(
                front_url=plan.front_url,
                dsn=self._dsn,
                up_pid=up_pid,
                postgres_pid=self._postgres.pid,
                postgres_data=str(self._postgres.files.data),
                ca_file=plan.schemes.authority,
                nodes=tuple(
                    NodeRecord(
                        id=process.plan.id,
                        zone=process.plan.zone,
                        url=process.plan.url,
                        internal_url=process.plan.internal_url,
                        pid=process.pid,
                        config=str(process.config),
                    )
                    for process in self._nodes
                ),
            )
        )

    def _check_stop(self) -> None:
        if self._stops.asked:
            raise StartInterrupted("stopped on request, before the cluster was ready")


def quote_log(process: NodeProcess) -> str:
    """Return where a node's log is, and its end."""
    tail = process.read_log_tail()
    return (
        f"The end of {process.log}:\n{textwrap.indent(tail, '    ')}" if tail else f"It wrote nothing to {process.log}."
    )
