"""A network of namespaces in which ways can be cut without a word: a star with a router in its middle.

Each node has a namespace and a subnet of its own; Postgres, the load balancer and the clients stay where they
are, behind two addresses of this machine's. What the router drops is lost as on a real network: new and
established connections alike wait, and go on when the way is open again.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

ROOT, POSTGRES = 0, -1
"""The places of the load balancer with the clients and, by another address, of Postgres. Nodes count from 1."""


@dataclass
class Star:
    """``prefix`` are the first two bytes of all addresses, ``name`` begins the names of all namespaces."""

    name: str
    prefix: str
    nodes: int
    cuts: set[tuple[int, int]] = field(default_factory=set)

    def address(self, place: int) -> str:
        return f"{self.prefix}.0.3" if place == POSTGRES else f"{self.prefix}.{place}.2"

    @property
    def subnet(self) -> str:
        """All places."""
        return f"{self.prefix}.0.0/16"

    def wrapper(self, place: int) -> Sequence[str]:
        """Return the command that runs another one at ``place``. It keeps this machine's mounts."""
        return ("nsenter", f"--net=/run/netns/{self.name}{place}")

    def cut(self, source: int, target: int) -> None:
        """Lose from now on what ``source`` sends to ``target``."""
        if (source, target) not in self.cuts:
            self.cuts.add((source, target))
            self._rule("add", source, target)

    def mend(self) -> None:
        """Open every way again."""
        while self.cuts:
            self._rule("del", *self.cuts.pop())

    def _rule(self, verb: str, source: int, target: int) -> None:
        ends = ("from", self.address(source), "to", self.address(target))
        ip("-n", f"{self.name}r", "rule", verb, *ends, "type", "blackhole")


def can_make_star() -> bool:
    """Say whether this machine lets us make network namespaces."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nsenter"):
        return False
    probe = f"hfp{os.getpid()}"
    try:
        ip("netns", "add", probe)
        ip("-n", probe, "link", "add", "hfone", "type", "veth", "peer", "name", "hftwo")
        ip("-n", probe, "rule", "add", "from", "10.9.9.9", "type", "blackhole")
        return True
    except subprocess.CalledProcessError:
        return False
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", probe)


@contextmanager
def star(nodes: int) -> Iterator[Star]:
    """Make the namespaces of a router and ``nodes`` nodes, and remove them at the end."""
    made = Star(f"hf{os.getpid()}-", free_prefix(), nodes)
    router = f"{made.name}r"
    with ExitStack() as stack:
        add_namespace(stack, router)
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{router}", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True
        )
        for place in range(nodes + 1):
            connect(stack, made, router, place)
        yield made


def connect(stack: ExitStack, made: Star, router: str, place: int) -> None:
    """Lay a cable from ``router`` to a namespace of its own for ``place``, or to this machine's own network."""
    outer, inner = f"hf{os.getpid()}o{place}", f"hf{os.getpid()}i{place}"
    where: tuple[str, ...] = ()
    if place != ROOT:
        add_namespace(stack, f"{made.name}{place}")
        where = ("-n", f"{made.name}{place}")
        ip(*where, "link", "set", "lo", "up")
    ip("-n", router, "link", "add", outer, "type", "veth", "peer", "name", inner)
    ip("-n", router, "link", "set", inner, "netns", f"{made.name}{place}" if place != ROOT else str(os.getpid()))
    if place == ROOT:
        # A namespace keeps its devices for as long as anything is left of it: this one is not to outlive us.
        stack.callback(subprocess.run, ["ip", "link", "del", inner], capture_output=True)
    ip("-n", router, "addr", "add", f"{made.prefix}.{place}.1/24", "dev", outer)
    ip("-n", router, "link", "set", outer, "up")
    ip(*where, "addr", "add", f"{made.address(place)}/24", "dev", inner)
    if place == ROOT:
        ip("addr", "add", f"{made.address(POSTGRES)}/24", "dev", inner)
    ip(*where, "link", "set", inner, "up")
    ip(*where, "route", "add", made.subnet, "via", f"{made.prefix}.{place}.1")


def add_namespace(stack: ExitStack, name: str) -> None:
    ip("netns", "add", name)
    stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)


def free_prefix() -> str:
    """Return the first two bytes of a private network that this machine has no route to."""
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    for _ in count():
        prefix = f"10.{random.randrange(100, 250)}"
        if f"{prefix}." not in routes:
            return prefix
    raise AssertionError


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
