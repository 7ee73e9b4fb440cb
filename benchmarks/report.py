"""The figures of a run: computed, printed beside floor and aims, written as JSON and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cells import JUDGED_CONCURRENCY, Cell, Operation, format_size
from benchmarks.floor import DISTURBED_FACTOR, REFERENCE, Floor

GB = 1e9
SLOW_FACTOR = 1.5
"""From this slowdown of the processor on a figure is marked."""

DEAR_GROWTH_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One cell of one round. CPU is that of all nodes and Postgres with their children, the clients' apart."""

    cell: Cell
    operations: int
    errors: dict[str, int]
    seconds: float
    per_second: float
    mb_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_seconds_per_1000: float
    cpu_seconds_per_gb: float
    node_cpu_seconds: float
    postgres_cpu_seconds: float
    client_cpu_seconds: float
    peaks_rss_mib: tuple[float, ...]
    slowdown: float

    @property
    def peak_rss_mib(self) -> float:
        """The peak of the largest node."""
        return max(self.peaks_rss_mib)

    def value(self, metric: str) -> float:
        """Return the figure that an aim names."""
        return float(getattr(self, metric))

    @property
    def verdict(self) -> str:
        """Whether the cell's aim is reached; empty where there is none."""
        aim = self.cell.aim
        if aim is None or not self.operations:
            return ""
        return f"<= {aim.most:g} {'ok' if self.value(aim.metric) <= aim.most else 'MISSED'}"


def best_of(rounds: Sequence[Sequence[Figures]]) -> list[Figures]:
    """Return of each cell the round without errors, if any, that cost the least CPU time for its work."""
    return [min(same, key=lambda one: (bool(one.errors), one.cpu_seconds_per_gb)) for same in zip(*rounds, strict=True)]


def print_figures(console: Console, figures: Sequence[Figures], floor: Floor | None) -> None:
    """Print one row for each cell, with the floor for the same bytes and the aim where there is one."""
    table = Table(
        title="Transfers (MB and GB are powers of ten)", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("cell", no_wrap=True)
    for name in ("ops/s", "MB/s", "p50\nms", "p99\nms", "CPU-s\n/1,000", "CPU-s\n/GB", "floor\n/GB", "x\nfloor"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("of it\nPg %", "peak RSS\nMiB a node", "slower\nx", "aim"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in figures:
        table.add_row(*row_of(one, floor), style="red" if one.errors else None)
    console.print(table)
    for one in figures:
        for message, count in one.errors.items():
            console.print(f"  {one.cell}: {count} failed: {message}", style="red", markup=False)


def row_of(one: Figures, floor: Floor | None) -> list[str]:
    least = floor_of(one.cell, floor)
    cpu = one.node_cpu_seconds + one.postgres_cpu_seconds
    speeds = (one.per_second, one.mb_per_second, one.p50_ms, one.p99_ms)
    return [
        str(one.cell),
        *map(short, (*speeds, one.cpu_seconds_per_1000, one.cpu_seconds_per_gb)),
        short(least) if least else "",
        f"{one.cpu_seconds_per_gb / least:.1f}" if least else "",
        f"{100 * one.postgres_cpu_seconds / cpu:.0f}" if cpu else "",
        " ".join(f"{peak:.0f}" for peak in one.peaks_rss_mib),
        f"{one.slowdown:.2f}{'!' if one.slowdown >= SLOW_FACTOR else ' '}",
        one.verdict,
    ]


def short(value: float) -> str:
    """Return ``value`` to about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def floor_of(cell: Cell, floor: Floor | None) -> float | None:
    """Return the CPU seconds per GB that the cell's bytes cost a bare program."""
    if floor is None:
        return None
    return (floor.put if cell.operation is Operation.PUT else floor.get).get(cell.size)


def print_floor(console: Console, floors: Sequence[Floor]) -> None:
    """Print the parts of the floor, measured before and after the cells, beside their reference."""
    table = Table(title="The floor's parts, CPU-s per GB", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("part", no_wrap=True)
    for name in ("before", "after", "reference", "most / ref."):
        table.add_column(name, justify="right")
    for name, reference in REFERENCE.items():
        values = [floor.parts[name] for floor in floors]
        table.add_row(
            name.replace("_", " "), *columns_of(values), f"{reference:.2f}", f"{max(values) / reference:.2f} x"
        )
    table.add_row("file write into a growing page cache", *columns_of([floor.growing_file_write for floor in floors]))
    console.print(table)
    if dear := set().union(*(floor.dear() for floor in floors)):
        console.print(
            f"The machine was disturbed, or is of another kind than the reference: {names_of(dear)} off by more than "
            f"{DISTURBED_FACTOR} x.\nRun it again, or compare by the column 'x floor'.",
            style="yellow",
        )
    if cheap := set.intersection(*(floor.cheap() for floor in floors)):
        console.print(f"Cheaper than on the reference by more than {DISTURBED_FACTOR} x: {names_of(cheap)}.")
    reused = min(floor.parts["file_write_fsync"] for floor in floors)
    growing = max(floor.growing_file_write for floor in floors)
    if growing > DEAR_GROWTH_FACTOR * reused:
        console.print(
            f"New memory is dear here: a GB that enlarges the page cache costs {growing - reused:.1f} CPU-s more than "
            "one that reuses\nits memory, as on virtual machines that hand free memory back to their host. "
            "Uploads that stay in the cache pay\nthis for each copy, and the floor does not.",
            style="yellow",
        )


def names_of(parts: set[str]) -> str:
    return ", ".join(sorted(parts)).replace("_", " ")


def columns_of(values: Sequence[float]) -> list[str]:
    """Return the cells 'before' and 'after' of one part."""
    return [f"{value:.2f}" for value in values] + [""] * (2 - len(values))


def print_aims(console: Console, figures: Sequence[Figures], rounds: int) -> None:
    """Print what was aimed at and what was reached, judged in the best round."""
    judged = [one for one in figures if one.verdict]
    if not judged:
        return
    console.print(f"Aims, best of {rounds} (they are judged at concurrency {JUDGED_CONCURRENCY}, best of 3):")
    for one in judged:
        aim = one.cell.aim
        assert aim is not None
        console.print(
            f"  {one.cell!s:14} {one.value(aim.metric):8.2f} {aim.unit:12} {one.verdict}",
            style="green" if one.verdict.endswith("ok") else "yellow",
            highlight=False,
        )


def write_json(
    file: Path, facts: dict[str, object], rounds: Sequence[Sequence[Figures]], floors: Sequence[Floor]
) -> None:
    """Write every round, the best of them and the floors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **facts,
        "floor_reference": REFERENCE,
        "floors": [asdict(floor) for floor in floors],
        "best": [plain(one) for one in best_of(rounds)],
        "rounds": [[plain(one) for one in figures] for figures in rounds],
    }
    file.write_text(json.dumps(document, indent=2) + "\n")


def plain(one: Figures) -> dict[str, object]:
    return {**asdict(one), "cell": str(one.cell), "aim": one.verdict}


def write_plot(file: Path, figures: Sequence[Figures], floor: Floor | None) -> None:
    """Draw CPU per GB and throughput over the size, one line for each concurrency. Raises ``ImportError``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    for column, operation in enumerate(Operation):
        chosen = [one for one in figures if one.cell.operation is operation and one.operations]
        for row, (label, metric) in enumerate((("CPU-s per GB", "cpu_seconds_per_gb"), ("MB/s", "mb_per_second"))):
            axes = panels[row][column]
            for count in sorted({one.cell.concurrency for one in chosen}):
                line = sorted((one.cell.size, one.value(metric)) for one in chosen if one.cell.concurrency == count)
                axes.plot(*zip(*line, strict=True), marker="o", label=f"concurrency {count}")
            sizes = sorted({one.cell.size for one in chosen})
            if floor is not None and row == 0 and sizes:
                values = floor.put if operation is Operation.PUT else floor.get
                axes.plot(sizes, [values[size] for size in sizes], "k--", label="floor")
            axes.set(title=operation.upper(), xlabel="size", ylabel=label, xscale="log", yscale="log")
            axes.set_xticks(sizes, [format_size(size) for size in sizes])
            axes.minorticks_off()
            if sizes:
                axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
