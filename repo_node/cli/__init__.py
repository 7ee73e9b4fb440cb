"""The command line ``holdfast``. Commands are imported when they are used, so that ``--help`` is quick."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import click


class Entry(NamedTuple):
    """Where a command lives, and the line the overview shows for it."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "up": Entry("repo_node.cli.launch", "up", "Start a cluster on this machine."),
    "down": Entry("repo_node.cli.launch", "down", "Stop the cluster that `up` started."),
    "status": Entry("repo_node.cli.status", "status", "Show nodes, zones, shards, blobs and missing copies."),
    "upload": Entry("repo_node.cli.upload", "upload", "Upload files and directories."),
    "download": Entry("repo_node.cli.download", "download", "Download files and folders."),
    "repo": Entry("repo_node.cli.repo", "repo", "List, create, change and delete repositories."),
    "shard": Entry("repo_node.cli.shard", "shard", "Add, drain, replace and remove shards (disks)."),
    "jobs": Entry("repo_node.cli.jobs", "jobs", "Show the maintenance jobs of every node."),
    "run-once": Entry("repo_node.cli.jobs", "run_once", "Let a maintenance job run now, and wait for it."),
    "fsck": Entry("repo_node.cli.fsck", "fsck", "Compare the shards with the database, and mend what differs."),
    "gc": Entry("repo_node.cli.gc", "gc", "Remove content nothing refers to; hold and release deletions."),
    "trash": Entry("repo_node.cli.trash", "trash", "List, restore and let go of what was deleted."),
    "audit": Entry("repo_node.cli.audit", "audit", "Show what changed, who asked for it, and from where."),
    "cluster": Entry("repo_node.cli.cluster", "cluster", "Make the whole cluster read-only, and writable again."),
    "settings": Entry("repo_node.cli.settings", "settings", "List, read and change the cluster's settings."),
    "user": Entry("repo_node.cli.user", "user", "Make, change, unlock and delete users."),
    "group": Entry("repo_node.cli.group", "group", "Make groups of users, and say who belongs to them."),
    "permission": Entry("repo_node.cli.permission", "permission", "Say who may do what, in which repositories."),
    "token": Entry("repo_node.cli.token", "token", "Create, list and revoke access tokens."),
    "node": Entry("repo_node.cli.node", "node", "Run one node; list, drain and remove nodes."),
    "support": Entry("repo_node.cli.support", "support", "Make one archive of what helps to find a fault."),
    "check-config": Entry("repo_node.cli.node", "check_config", "Check a node's configuration file."),
    "backup": Entry("repo_node.cli.backup", "backup", "Back the metadata up to a file."),
    "restore": Entry("repo_node.cli.backup", "restore", "Fill an empty database from a backup."),
    "rebuild": Entry("repo_node.cli.fsck", "rebuild", "After a restore: enter what only the shards know."),
    "init-db": Entry("repo_node.cli.database", "init_db", "Create or upgrade the database schema."),
}


class LazyGroup(click.Group):
    """A group whose overview needs no command to be imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(entry.module), entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{entry.attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast", prog_name="holdfast")
def main() -> None:
    """Holdfast keeps your binaries on N of M disks, and any node may die.

    \b
    A first round:
      holdfast up --detach
      holdfast upload dist/app.tgz generic-local/app/1.0/
      holdfast download generic-local/app/1.0/app.tgz
      holdfast status

    Commands that talk to a cluster find it through --url, --data, HOLDFAST_URL or ./holdfast-data, in
    this order. Exit status: 0 done, 1 failed, 2 wrong usage.
    """
