"""How many bytes does scrub read for one second of processor time, by block digests and with sha256?

Writes blobs of several sizes to a shard in DIR and re-reads them as scrub does. Processor time is that of this
whole process, the kernel's share included; the disk may be slower than that, and usually is.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import Output, add_output_option
from sharding import identity
from sharding.digests import block_digests
from sharding.identifiers import mint_generation
from sharding.local import LocalShard, open_local_shard
from sharding.maintenance.judgement import PORTION_BYTES, reread_within
from sharding.model import BLOCK_BYTES, BlobName, ShardId
from sharding.shard import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {"32 MiB": 32 * BLOCK_BYTES, "1 MiB": BLOCK_BYTES, "64 KiB": 64 << 10}
GB = 1e9


@dataclass(frozen=True, slots=True)
class Line:
    """What one way of reading cost."""

    blobs: str
    compared: str
    bytes: int
    seconds: float
    cpu_seconds: float

    @property
    def gb_per_cpu_second(self) -> float:
        return self.bytes / GB / self.cpu_seconds


async def fill(shard: LocalShard, size: int, total: int) -> list[tuple[BlobName, bytes]]:
    """Write ``total`` bytes as blobs of ``size``; return their names and block digests."""
    data = bytearray(os.urandom(size))
    made = []
    for number in range(max(total // size, 1)):
        data[:8] = number.to_bytes(8, "big")
        name = BlobName(hashlib.sha256(data).digest(), mint_generation())
        blocks = block_digests(data)
        staged = await shard.stage(name.generation)
        for start in range(0, size, BLOCK_BYTES):
            await staged.write(memoryview(data)[start : start + BLOCK_BYTES])
        await staged.commit(name.sha256, blocks)
        made.append((name, blocks))
    return made


async def scrub(shard: LocalShard, blobs: list[tuple[BlobName, bytes]], size: int, *, proof: bool) -> None:
    """Re-read every blob in batches of a portion, as the job does, and compare."""
    at_once = max(PORTION_BYTES // size, 1)
    for start in range(0, len(blobs), at_once):
        batch = blobs[start : start + at_once]
        hashers = [hashlib.sha256() if proof else None for _ in batch]
        parts = [Part(name, size, 0, size, hasher) for (name, _), hasher in zip(batch, hashers, strict=True)]
        outcomes = await reread_within(shard, parts)
        assert outcomes == [blocks for _, blocks in batch]
        assert not proof or all(
            hasher and hasher.digest() == name.sha256 for (name, _), hasher in zip(batch, hashers, strict=True)
        )


async def measure(directory: Path, total: int) -> list[Line]:
    lines = []
    for label, size in SIZES.items():
        path = directory / label.replace(" ", "-")
        made = identity.create(path, uuid4(), uuid4())
        async with open_local_shard(ShardId(1), path, made, reserve_bytes=0) as shard:
            blobs = await fill(shard, size, total if size > BLOCK_BYTES // 2 else total // 8)
            for compared in ("blocks", "sha256"):
                wall, cpu = time.perf_counter(), time.process_time()
                await scrub(shard, blobs, size, proof=compared == "sha256")
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                lines.append(Line(label, compared, size * len(blobs), wall, cpu))
        shutil.rmtree(path)
    return lines


def print_table(console: Console, lines: Sequence[Line]) -> None:
    table = Table(title="Scrub", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("blobs", "compared", "GB", "GB/s", "GB per CPU-s"):
        table.add_column(name, justify="left" if name == "compared" else "right")
    for line in lines:
        gigabytes = line.bytes / GB
        figures = (gigabytes, gigabytes / line.seconds, line.gb_per_cpu_second)
        table.add_row(line.blobs, line.compared, *(f"{value:.2f}" for value in figures))
    console.print(table)


def draw(figure: Figure, lines: Sequence[Line]) -> None:
    """Draw the rate of each way of reading."""
    axes = figure.subplots()
    bars = axes.bar([f"{line.blobs}, {line.compared}" for line in lines], [line.gb_per_cpu_second for line in lines])
    axes.bar_label(bars, fmt="%.2f")
    axes.set(ylabel="GB per CPU-s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the shard is made; a temporary directory by default")
    parser.add_argument("--mib", type=int, default=1024, help="how much is written and read for each size")
    add_output_option(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scrub-", dir=given.directory) as directory:
        lines = asyncio.run(measure(Path(directory), given.mib << 20))
    output = Output("scrub", given.results)
    print_table(output.console, lines)
    document = [{**asdict(line), "gb_per_cpu_second": round(line.gb_per_cpu_second, 2)} for line in lines]
    output.write({"lines": document}, lambda figure: draw(figure, lines))


if __name__ == "__main__":
    main()
