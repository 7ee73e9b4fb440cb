"""Every line of docs/security.md that applies is a test named after its number, and the page says where."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"
LINES = 42
ROW = re.compile(r"\| S(\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|")
NUMBERED = re.compile(r"^ *(?:async )?def test_s(\d+)_(?:and_s(\d+)_)?", re.MULTILINE)
UPDATE = "HOLDFAST_WRITE_CHECKLIST"
"""Set it to have the page's last column written anew."""


class Row(NamedTuple):
    number: int
    what: str
    applies: str
    files: str


def rows() -> list[Row]:
    return [Row(int(number), *rest) for number, *rest in map(re.Match.groups, ROW.finditer(PAGE.read_text()))]


def files_by_number() -> dict[int, list[str]]:
    """Return in which files each number has tests."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for file in (ROOT / "tests").rglob("test_*.py"):
        for numbers in NUMBERED.finditer(file.read_text()):
            for number in filter(None, numbers.groups()):
                found[int(number)].add(str(file.relative_to(ROOT / "tests")))
    return {number: sorted(files) for number, files in found.items()}


def cell(files: list[str]) -> str:
    return ", ".join(f"`{file}`" for file in files)


def test_every_line_of_the_checklist_that_applies_has_tests_and_the_page_says_where() -> None:
    found, page = files_by_number(), rows()
    if os.environ.get(UPDATE):
        text = PAGE.read_text()
        for row in page:
            told = f"| S{row.number} | {row.what} | {row.applies} |"
            text = re.sub(f"^{re.escape(told)}.*$", f"{told} {cell(found.get(row.number, []))} |", text, flags=re.M)
        PAGE.write_text(text)
        page = rows()
    assert [row.number for row in page] == list(range(1, LINES + 1))
    assert found.keys() <= {row.number for row in page}
    without = [row.number for row in page if not row.applies.startswith("no:") and row.number not in found]
    assert without == [], "these lines apply and have no test that is named after them"
    wrong = [row.number for row in page if row.files != cell(found.get(row.number, []))]
    assert wrong == [], f"{UPDATE}=1 pytest {Path(__file__).relative_to(ROOT)} writes where their tests are"
