"""The last results in the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.last import BEGIN, END, HERE, inserted, remainders, sections


def test_results_stand_between_the_marks() -> None:
    readme = f"a\n{BEGIN}old\n{END}b\n"
    once = inserted(readme, "new\n")
    assert once == f"a\n{BEGIN}\nnew\n\n{END}b\n"
    assert inserted(once, "new\n") == once


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="last results"):
        inserted("a", "new")


def test_the_readme_has_the_marks() -> None:
    inserted((HERE / "README.md").read_text(), "")


def test_what_has_results_has_a_section(tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text(json.dumps({"command": "python -m x", "cores": 2}))
    (tmp_path / "scale.txt").write_text("table  \n")
    (tmp_path / "scale.png").touch()
    (tmp_path / "gc.json").write_text("{}")
    text = "\n".join(sections(tmp_path))
    assert "`python -m x`, on 2 cores:\n\n```\ntable\n```" in text
    assert "last/scale.png" in text and "gc" not in text


def test_a_cost_is_split_into_floor_postgres_and_the_rest() -> None:
    one = {"title": "PUT", "cost": 2.0, "floor": 0.5, "node_cpu_seconds": 3.0, "postgres_cpu_seconds": 1.0}
    _, line = remainders([one, one | {"floor": None}])
    assert line.split() == ["PUT", "2.00", "0.50", "0.50", "1.00"]
