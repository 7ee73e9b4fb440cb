"""Puts the results of the last runs into ``benchmarks/README.md``: tables as they were printed, plots, flame graphs.

Takes what is in ``benchmarks/results`` and copies plots and graphs to ``benchmarks/last``, which is under version
control. Beside the table of transfers it says what each cost is made of. ``make bench-last`` runs everything before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.output import RESULTS

HERE = Path(__file__).parent
BEGIN, END = "<!-- last results -->\n", "<!-- end of last results -->\n"
ORDER = (
    "transfer",
    "scale",
    "search",
    "workers",
    "calls",
    "peers",
    "long",
    "ring",
    "repair",
    "scrub",
    "gc",
    "failover",
)
FLAMES = {"PUT": "flame-put-4KiB-16.svg", "GET": "flame-get-4KiB-16.svg"}


def sections(results: Path) -> Iterator[str]:
    """Yield what stands in the README for each benchmark that has results."""
    for name in ORDER:
        document, text = results / f"{name}.json", results / f"{name}.txt"
        if not (document.exists() and text.exists()):
            continue
        found = json.loads(document.read_text())
        lines = [line.rstrip() for line in text.read_text().strip().splitlines()]
        yield f"### {name}\n\n`{found['command']}`, on {found['cores']} cores:\n\n" + fenced(lines)
        if name == "transfer":
            yield "What it is made of, CPU-s in the unit of each line:\n\n" + fenced(remainders(found["best"]))
        if (results / f"{name}.png").exists():
            yield f"![{name}](last/{name}.png)\n"
    for name, file in FLAMES.items():
        if (results / file).exists():
            yield f"### The path of a {name}\n\n`python -m benchmarks.flame`\n\n![{name}](last/{file})\n"


def fenced(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```", ""])


def remainders(best: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each work: its floor, Postgres' part, and what the nodes spend beyond the floor."""
    rows = [("work", "cost", "floor", "Postgres", "nodes beyond the floor")]
    for one in best:
        spent = one["node_cpu_seconds"] + one["postgres_cpu_seconds"]
        if not one["floor"] or not spent:
            continue
        postgres = one["cost"] * one["postgres_cpu_seconds"] / spent
        rest = one["cost"] - postgres - one["floor"]
        rows.append((one["title"], *(f"{value:.2f}" for value in (one["cost"], one["floor"], postgres, rest))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def inserted(readme: str, text: str) -> str:
    """Return ``readme`` with ``text`` between its marks. Raises ``ValueError`` when they are not there."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"no {BEGIN.strip()} ... {END.strip()}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    """Copy the pictures and write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the results are")
    results = parser.parse_args().results
    place = HERE / "last"
    place.mkdir(exist_ok=True)
    for picture in (*(f"{name}.png" for name in ORDER), *FLAMES.values()):
        if (results / picture).exists():
            shutil.copy(results / picture, place / picture)
    readme = HERE / "README.md"
    readme.write_text(inserted(readme.read_text(), "\n".join(sections(results))))


if __name__ == "__main__":
    main()
