"""What ``up`` prints when the cluster is ready."""

from __future__ import annotations

import shlex

from repo_node.launch.layout import Layout
from repo_node.launch.plan import ClusterPlan


def describe_cluster(plan: ClusterPlan, layout: Layout) -> str:
    """Return the URLs, the admin user, and one line that uploads a file when it is pasted."""
    zones = len({node.zone for node in plan.nodes})
    width = max(len(node.id) for node in plan.nodes) + 2
    nodes = [f"  {node.id:<{width}}{node.url}   {node.zone}" for node in plan.nodes]
    return "\n".join(
        [
            "",
            f"Holdfast is ready (nodes: {len(plan.nodes)}, zones: {zones}, shards of each node: {plan.shards}).",
            "",
            f"  {'front':<{width}}{plan.front_url}   shared by all nodes",
            *nodes,
            f"  {'admin':<{width}}user admin, password in {layout.admin_password}",
            "",
            "Try it:",
            f"  {upload_line(plan, layout)}",
            "",
        ]
    )


def upload_line(plan: ClusterPlan, layout: Layout) -> str:
    """Return a command line that works in any directory; the shell reads the password, nobody prints it."""
    password = f'"admin:$(cat {shlex.quote(str(layout.admin_password))})"'
    authority = f"--cacert {shlex.quote(plan.schemes.authority)} " if plan.schemes.authority else ""
    return f"echo hello | curl {authority}-u {password} -T - {plan.front_url}/artifactory/generic-local/hello.txt"
