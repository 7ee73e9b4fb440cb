"""The figures of a run of transfers: computed, printed beside floor and aims, written and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cells import Aim, Cell, Operation, Way
from benchmarks.floor import DISTURBED_FACTOR, GB, REFERENCE, SMALL_FILE_REFERENCE, Floor
from benchmarks.generator import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOW_FACTOR = 1.5
"""From this slowdown of the processor on a figure is marked."""

DEAR_GROWTH_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What the servers spent during a cell. CPU is that of all nodes and Postgres with their children."""

    node_cpu_seconds: float
    postgres_cpu_seconds: float
    peaks_rss_mib: tuple[float, ...]
    slowdown: float

    @property
    def cpu_seconds(self) -> float:
        return self.node_cpu_seconds + self.postgres_cpu_seconds


@dataclass(frozen=True, slots=True)
class Figures:
    """One cell, measured once. ``objects`` is how many the requests were spread over, 0 for uploads."""

    cell: Cell
    objects: int
    operations: int
    errors: dict[str, int]
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_seconds: float
    spent: Spent

    @property
    def per_second(self) -> float:
        return self.operations / self.seconds

    @property
    def mb_per_second(self) -> float:
        return self.per_second * self.cell.size / 1e6 if self.cell.has_body else 0.0

    @property
    def cpu_seconds_per_1000(self) -> float:
        return self.spent.cpu_seconds / max(self.operations, 1) * 1000

    @property
    def cpu_seconds_per_gb(self) -> float:
        return self.spent.cpu_seconds / (max(self.operations, 1) * self.cell.size) * GB

    @property
    def cost(self) -> float:
        """CPU seconds in the unit in which the cell is judged."""
        return self.cpu_seconds_per_1000 if self.cell.is_small else self.cpu_seconds_per_gb

    @property
    def peak_rss_mib(self) -> float:
        """The peak of the largest process of a node."""
        return max(self.spent.peaks_rss_mib)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One aim, and what was reached; None where its floor was not measured."""

    aim: Aim
    value: float | None

    @property
    def is_missed(self) -> bool:
        return self.value is not None and not self.aim.is_reached(self.value)

    @property
    def verdict(self) -> str:
        return "" if self.value is None else "MISSED" if self.is_missed else "ok"


def figures_of(cell: Cell, objects: int, outcome: Outcome, spent: Spent) -> Figures:
    """Return the figures of one cell."""
    return Figures(
        cell=cell,
        objects=objects,
        operations=len(outcome.latencies),
        errors=dict(outcome.errors),
        seconds=outcome.ended - outcome.began,
        p50_ms=percentile(outcome.latencies, 50) * 1e3,
        p99_ms=percentile(outcome.latencies, 99) * 1e3,
        client_cpu_seconds=outcome.cpu_seconds,
        spent=spent,
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed; 0 when there is none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0.0


def best_of(measured: Sequence[Figures]) -> list[Figures]:
    """Return of each cell, in the order of their first, the figures without errors, if any, that are the best.

    The best cost the least CPU time; those of an open loop have the lowest p99, those for memory the highest peak.
    """

    def badness(one: Figures) -> tuple[bool, float]:
        by_way = {Way.OPEN: one.p99_ms, Way.ONE: -one.peak_rss_mib}
        return bool(one.errors), by_way.get(one.cell.way, one.cost)

    cells = dict.fromkeys(one.cell for one in measured)
    return [min((one for one in measured if one.cell == cell), key=badness) for cell in cells]


def judge(one: Figures, floor: Floor | None) -> Iterator[Judgement]:
    """Yield each aim of the cell with what was reached."""
    for aim in one.cell.aims if one.operations else ():
        if not aim.floors:
            yield Judgement(aim, float(getattr(one, aim.metric)))
        else:
            least = floor_of(one.cell, floor)
            yield Judgement(aim, one.cost / least if least else None)


def floor_of(cell: Cell, floor: Floor | None) -> float | None:
    """Return the CPU seconds, in the cell's unit, that the same takes a bare program."""
    if floor is None:
        return None
    if not cell.has_body:
        return floor.answer
    per_gb = (floor.put if cell.is_upload else floor.get).get(cell.size)
    if per_gb is not None and cell.operation is Operation.PUT_SHA256:
        per_gb -= floor.parts["sha1"] + floor.parts["md5"]
    return per_gb if per_gb is None or not cell.is_small else per_gb * cell.size * 1000 / GB


def print_figures(console: Console, figures: Sequence[Figures], floor: Floor | None) -> None:
    """Print one row for each cell, with the floor for the same work and the aim where there is one."""
    table = Table(
        title="Transfers (CPU-s per 1,000 operations up to 256 KiB, per GB of 10^9 bytes above)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("work", no_wrap=True)
    for name in ("objects", "ops/s", "MB/s", "p50\nms", "p99\nms", "CPU-s", "floor", "x\nfloor", "of it\nPg %"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("peak\nMiB", "slower\nx", "aim"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in figures:
        table.add_row(*row_of(one, floor), style="red" if one.errors else None)
    console.print(table)
    for one in figures:
        for message, count in one.errors.items():
            console.print(f"  {one.cell}: {count} failed: {message}", style="red", markup=False)


def row_of(one: Figures, floor: Floor | None) -> list[str]:
    least, spent = floor_of(one.cell, floor), one.spent
    first = next(judge(one, floor), None)
    return [
        one.cell.title,
        f"{one.objects:,}" if one.objects else "",
        short(one.per_second),
        short(one.mb_per_second) if one.mb_per_second else "",
        short(one.p50_ms),
        short(one.p99_ms),
        short(one.cost),
        short(least) if least else "",
        f"{one.cost / least:.1f}" if least else "",
        f"{100 * spent.postgres_cpu_seconds / spent.cpu_seconds:.0f}" if spent.cpu_seconds else "",
        f"{one.peak_rss_mib:.0f}",
        f"{spent.slowdown:.2f}{'!' if spent.slowdown >= SLOW_FACTOR else ' '}",
        "" if first is None else f"{first.aim.limit} {first.verdict}",
    ]


def short(value: float) -> str:
    """Return ``value`` to about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
    small_files = [floor.small_file for floor in floors]
    ratio = f"{max(small_files) / SMALL_FILE_REFERENCE:.2f} x"
    name = "4 KiB file, fsync of file and directory, per 1,000"
    table.add_row(name, *columns_of(small_files), f"{SMALL_FILE_REFERENCE:.2f}", ratio)
    table.add_row("request answered without a body, per 1,000", *columns_of([floor.answer for floor in floors]))
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


def print_aims(console: Console, figures: Sequence[Figures], floor: Floor | None) -> None:
    """Print each aim and what was reached, judged in the best round."""
    table = Table(title="Aims", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("work", "reached", "aim", ""):
        table.add_column(name, justify="right" if name == "reached" else "left", no_wrap=True)
    for one in figures:
        for judgement in judge(one, floor):
            value = "?" if judgement.value is None else f"{judgement.value:,.2f}"
            colour = "yellow" if judgement.is_missed else "green"
            table.add_row(one.cell.title, value, str(judgement.aim), judgement.verdict, style=colour)
    if table.row_count:
        console.print(table)


def document_of(measured: Sequence[Figures], floors: Sequence[Floor], floor: Floor | None) -> dict[str, object]:
    """Return every figure, the best of them with their aims, and the floors."""
    return {
        "floor_reference": REFERENCE,
        "floors": [asdict(floor) for floor in floors],
        "best": [plain(one, floor) for one in best_of(measured)],
        "measured": [plain(one, floor) for one in measured],
    }


def plain(one: Figures, floor: Floor | None) -> dict[str, object]:
    spent = asdict(one.spent)
    judged = [{"aim": str(each.aim), "value": each.value, "verdict": each.verdict} for each in judge(one, floor)]
    computed = {name: getattr(one, name) for name in ("per_second", "mb_per_second", "cost")}
    unit = "CPU-s per 1,000" if one.cell.is_small else "CPU-s per GB"
    rest = {name: value for name, value in asdict(one).items() if name not in ("cell", "spent")}
    cell = {"cell": str(one.cell), "title": one.cell.title}
    return cell | rest | computed | {"unit": unit, "floor": floor_of(one.cell, floor), "aims": judged} | spent


def draw(figure: Figure, figures: Sequence[Figures], floor: Floor | None) -> None:
    """Draw what each work costs beside its floor and its aim: small objects by the thousand, large ones by the GB."""
    panels = figure.subplots(1, 2)
    for axes, is_small, unit in zip(panels, (True, False), ("1,000 operations", "GB"), strict=True):
        chosen = [one for one in figures if one.cell.is_small is is_small and one.operations][::-1]
        bars = axes.barh([one.cell.title for one in chosen], [one.cost for one in chosen], color="tab:blue", height=0.6)
        axes.bar_label(bars, [short(one.cost) for one in chosen], padding=3, fontsize=8)
        for row, one in enumerate(chosen):
            least = floor_of(one.cell, floor)
            bounds = [
                each.bound * (least or 0) if each.floors else each.bound
                for each in one.cell.aims
                if each.floors or each.metric.startswith("cpu")
            ]
            for value, colour in [(least, "black"), *((bound, "tab:green") for bound in bounds)]:
                if value:
                    axes.plot([value, value], [row - 0.38, row + 0.38], color=colour, lw=2)
        # An axis with nothing on it has no logarithm.
        axes.set(xlabel=f"CPU-s per {unit} (black: floor, green: aim)", xscale="log" if chosen else "linear")
        axes.margins(x=0.15)
        axes.minorticks_off()
        axes.tick_params(axis="y", labelsize=8)
