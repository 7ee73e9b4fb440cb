"""How evenly, how stably, how quickly and in how much memory does the ring place blobs?

Balance and movement are exact, not sampled: they add up the arcs of the ring. The vectorised
placement this takes is checked against ``Ring.primaries`` in every run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.output import Output, add_output_option
from sharding.model import Member, NodeId, ShardId, ZoneId
from sharding.ring import MEMBERS_MAX, Ring

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COPIES = 2
ZONES = 3
SHARDS_PER_NODE = 4
CHECKED_KEYS = 2_000
TIMED_KEYS = 20_000
SHARDS_MAX = 8_000

EXPLANATION = """\
The members are equal shards, four to a node, dealt out over three zones; blobs have two copies.

  max/mean      load of the fullest shard over the mean load                         aim <= 1.05 at 24
  add, remove   replicas that move when one shard comes or goes, over the ideal      aim <= 1.1
                share (copies / shards with it); the worst of one shard in each zone
  look-up       Ring.primaries(key, 2) for random keys, median of five rounds        aim <= 10 us
  zone down     the first three candidates while every shard of one zone is unusable
  build         Ring(members), best of three                                         aim <= 1 s at 240
  peak          memory traced while building                                         aim <= 32 MiB at 240

All three default sizes take about half a minute and 750 MB. Without options the figures go to
benchmarks/results/.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What one size of ring measured; ratios have no unit."""

    shards: int
    virtual_nodes: int
    max_over_mean: float
    added_moves_over_ideal: float
    removed_moves_over_ideal: float
    lookup_us: float
    lookup_zone_down_us: float
    build_seconds: float
    build_peak_mib: float


COLUMNS = (
    ("shards", "shards", ",d", (), 0.0),
    ("max_over_mean", "max/\nmean", ".3f", (24,), 1.05),
    ("added_moves_over_ideal", "add", ".3f", (24, 240, 2400), 1.1),
    ("removed_moves_over_ideal", "remove", ".3f", (24, 240, 2400), 1.1),
    ("lookup_us", "look-up\nus", ".1f", (24, 240), 10.0),
    ("lookup_zone_down_us", "zone down\nus", ".0f", (), 0.0),
    ("build_seconds", "build\ns", ".3f", (240,), 1.0),
    ("build_peak_mib", "peak\nMiB", ".1f", (240,), 32.0),
)
"""Of each column its field, heading and format, at which sizes it has an aim, and the most it may be there."""


class Placement:
    """The two homes of every key of a ring, as arrays: entry ``i`` serves the keys up to its position."""

    def __init__(self, ring: Ring) -> None:
        numbers: NDArray[np.uint64] = np.frombuffer(ring._entries, dtype=np.uint64)
        self.positions = numbers & np.uint64(2**64 - MEMBERS_MAX)
        self.first = (numbers & np.uint64(MEMBERS_MAX - 1)).astype(np.uint16)
        zone_numbers = {zone: number for number, zone in enumerate(sorted(ring.zones))}
        zones = np.array([zone_numbers[member.zone] for member in ring.members], dtype=np.uint16)[self.first]
        # The second copy goes to the entry that begins the next run of another zone.
        begins = zones != np.roll(zones, 1)
        starts = np.flatnonzero(begins)
        self.second = self.first[starts[np.cumsum(begins, dtype=np.int32) % len(starts)]]

    @property
    def arcs(self) -> NDArray[np.float64]:
        """The share of all keys each entry serves."""
        return (self.positions - np.roll(self.positions, 1)) / 2.0**64

    def at(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return the first and the second home of each key."""
        places = np.searchsorted(self.positions, keys) % len(self.positions)
        return self.first[places], self.second[places]


def equal_members(count: int, *, first: int = 0) -> list[Member]:
    """Return ``count`` shards numbered from ``first``; the same number is the same shard in every run."""
    return [
        Member(
            ShardId(number),
            UUID(int=random.Random(number).getrandbits(128)),
            ZoneId(f"zone-{number % ZONES}"),
            NodeId(f"node-{number % ZONES}-{number // ZONES // SHARDS_PER_NODE}"),
        )
        for number in range(first, first + count)
    ]


def check(ring: Ring, placement: Placement) -> None:
    """Exit when the vectorised placement is not what ``Ring.primaries`` says."""
    keys = np.random.default_rng(1).integers(0, 2**64, CHECKED_KEYS, dtype=np.uint64) & np.uint64(2**64 - MEMBERS_MAX)
    for key, first, second in zip(keys.tolist(), *placement.at(keys), strict=True):
        if ring.primaries(key, COPIES) != (ring.members[first], ring.members[second]):
            sys.exit(f"bench_ring: the vectorised placement of key {key} is wrong; the figures would be too")


def max_over_mean(ring: Ring, placement: Placement) -> float:
    """Return the load of the fullest member over the mean."""
    arcs, count = placement.arcs, len(ring.members)
    load = np.bincount(placement.first, arcs, count) + np.bincount(placement.second, arcs, count)
    return float(load.max() / load.mean())


def moved_share(large: Ring, homes: Placement, small: Ring) -> float:
    """Return how many replicas a key moves on average between a ring and one with fewer members."""
    indices = {member: index for index, member in enumerate(large.members)}
    renumbered = np.array([indices[member] for member in small.members], dtype=np.uint16)
    # Every position of the small ring is one of the large ring, so that no arc of the large one is split.
    first, second = (renumbered[owners] for owners in Placement(small).at(homes.positions))
    moved = ((homes.first != first) & (homes.first != second)).astype(np.uint8)
    moved += (homes.second != first) & (homes.second != second)
    return float(np.dot(moved, homes.arcs))


def moves_over_ideal(members: Sequence[Member], ring: Ring, placement: Placement) -> tuple[float, float]:
    """Return what adding and what removing one shard moves, over the ideal: the worst of one in each zone."""
    count = len(members)
    added, removed = [], []
    for newcomer in equal_members(ZONES, first=count):
        large = Ring([*members, newcomer])
        added.append(moved_share(large, Placement(large), ring) / (COPIES / (count + 1)))
    for leaver in members[:ZONES]:
        small = Ring([member for member in members if member != leaver])
        removed.append(moved_share(ring, placement, small) / (COPIES / count))
    return max(added), max(removed)


def lookup_us(look_up: Callable[[int], object], keys: Sequence[int]) -> float:
    """Return the median over five rounds of the mean time of one look-up, in microseconds."""
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for key in keys:
            look_up(key)
        rounds.append((time.perf_counter() - started) / len(keys) * 1e6)
    return statistics.median(rounds)


def build_costs(members: Sequence[Member]) -> tuple[float, float]:
    """Return the seconds of the best of three builds, and the peak of traced memory in MiB."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        Ring(members)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    Ring(members)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak_bytes / 2**20


def measure(count: int) -> Result:
    """Measure a ring of ``count`` equal shards."""
    members = equal_members(count)
    build_seconds, build_peak_mib = build_costs(members)
    ring = Ring(members)
    chance = random.Random(count)
    keys = [chance.getrandbits(64) for _ in range(TIMED_KEYS)]
    lookup = lookup_us(lambda key: ring.primaries(key, COPIES), keys)
    down = members[0].zone
    zone_down = lookup_us(
        lambda key: tuple(islice(ring.candidates(key, usable=lambda member: member.zone != down), ZONES)),
        keys[: TIMED_KEYS // 20],
    )
    placement = Placement(ring)
    check(ring, placement)
    added, removed = moves_over_ideal(members, ring, placement)
    return Result(
        shards=count,
        virtual_nodes=len(placement.first),
        max_over_mean=max_over_mean(ring, placement),
        added_moves_over_ideal=added,
        removed_moves_over_ideal=removed,
        lookup_us=lookup,
        lookup_zone_down_us=zone_down,
        build_seconds=build_seconds,
        build_peak_mib=build_peak_mib,
    )


def print_table(console: Console, results: Sequence[Result]) -> None:
    """Print a row a ring; green meets its aim, red misses it, what has no aim is plain."""
    table = Table(title=f"Ring: {COPIES} copies over {ZONES} zones")
    for _, heading, *_ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = []
        for name, _, form, sizes, most in COLUMNS:
            value = getattr(result, name)
            colour = ("green" if value <= most else "bold red") if result.shards in sizes else "none"
            cells.append(f"[{colour}]{value:{form}}[/]")
        table.add_row(*cells)
    console.print(table)


def document_of(results: Sequence[Result]) -> dict[str, object]:
    """Return the results with what they depend on."""
    facts = {"numpy": np.__version__, "copies": COPIES, "zones": ZONES}
    return facts | {"results": [asdict(result) for result in results]}


def draw(figure: Figure, results: Sequence[Result]) -> None:
    """Draw ratios, times and memory over the number of shards."""
    panels = (
        ("over ideal", ("max_over_mean", "added_moves_over_ideal", "removed_moves_over_ideal"), "linear"),
        ("microseconds", ("lookup_us", "lookup_zone_down_us"), "log"),
        ("seconds, MiB", ("build_seconds", "build_peak_mib"), "log"),
    )
    for axes, (label, names, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            axes.plot([r.shards for r in results], [getattr(r, name) for r in results], marker="o", label=name)
        axes.set(xlabel="shards", ylabel=label, xscale="log", yscale=scale)
        axes.legend()


def main() -> None:
    """Measure every size asked for, print the table, write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXPLANATION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[24, 240, 2400], metavar="N", help="sizes to measure")
    add_output_option(parser)
    arguments = parser.parse_args()
    if min(arguments.shards) < 2 * ZONES or max(arguments.shards) > SHARDS_MAX:
        parser.error(f"--shards takes {2 * ZONES} (so that no zone runs empty when a shard goes) to {SHARDS_MAX}")
    results = []
    for count in arguments.shards:
        with Console(stderr=True).status(f"measuring {count:,} shards"):
            results.append(measure(count))
    output = Output("ring", arguments.results)
    print_table(output.console, results)
    output.write(document_of(results), lambda figure: draw(figure, results))


if __name__ == "__main__":
    main()
