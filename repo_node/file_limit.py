"""Lets a process open as many files as its connections, shards, peers and Postgres need."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("holdfast")

FILES_BESIDES_CONNECTIONS = 2_048
"""Open files a busy node needs for its shards, its peers and Postgres."""


def raise_file_limit(connections_max: int) -> None:
    """Let this process open as many files as go with ``connections_max``, or as many as its hard limit allows."""
    wanted = connections_max + FILES_BESIDES_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        facts = {"open_files_max": allowed, "wanted": wanted}
        log.warning("fewer open files are allowed than http.connections_max needs", extra={"facts": facts})
