"""Ports on the loopback: which are free, and the claim on the front port that all nodes share."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Mapping

from repo_node.launch.errors import PortTaken

LOOPBACK = "127.0.0.1"
# Below the range from which kernels take the ports of outgoing connections, so that a remembered
# port is not lost to one of those while the server is down.
PRIVATE_PORTS = range(15_000, 30_000)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Return whether nobody has ``port``, not even as a shared one; connections on their way out do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def find_free_port(preferred: int | None = None, avoid: Collection[int] = ()) -> int:
    """Return ``preferred`` when it is free, else a free port that is not in ``avoid``."""
    if preferred is not None and preferred not in avoid and is_free(preferred):
        return preferred
    for port in random.sample(PRIVATE_PORTS, 200):
        if port not in avoid and is_free(port):
            return port
    raise OSError(f"no free port on {LOOPBACK} from {PRIVATE_PORTS.start} to {PRIVATE_PORTS.stop - 1}")


def hold_shared_port(port: int, host: str = LOOPBACK) -> socket.socket:
    """Return a socket that claims ``port`` for those who share it (SO_REUSEPORT) and never gets a connection.

    While it is open ``is_free`` says no, even when every process that listens there is dead.
    Raises ``OSError`` when somebody has the port alone.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except BaseException:
        holder.close()
        raise
    return holder


def claim_front_port(port: int) -> socket.socket:
    """Claim the port that all nodes share; the claim ends when the returned socket is closed.

    Raises ``PortTaken`` when anybody has it: a second cluster there would silently get a share of the requests.
    """
    if is_free(port):
        try:
            return hold_shared_port(port)
        except OSError:
            pass  # somebody came in between
    raise PortTaken(
        port, f"port {port} on {LOOPBACK} is in use by another program; stop that, or choose another with --port"
    )


def check_node_ports(ports: Mapping[int, str]) -> None:
    """Raise ``PortTaken`` when one of ``ports``, each with the name of its node, is not free."""
    for port, owner in ports.items():
        if not is_free(port):
            raise PortTaken(
                port,
                f"port {port} on {LOOPBACK}, which {owner} would listen on, is in use by another program; stop that, "
                "or choose another front port with --port: the ports of the nodes follow it",
            )
