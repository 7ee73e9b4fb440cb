"""What the end of `holdfast fsck` says."""

from __future__ import annotations

from typing import Any

from repo_node.cli.fsck import summary_lines


def check(*, found: int = 0, error: str | None = None, finished: bool = True) -> dict[str, Any]:
    report = {"findings": {"missing": {"found": found}}} if finished else None
    return {"finished_at": "2031-05-04T03:00:00Z" if finished else None, "error": error, "report": report}


def test_summary_counts_only_shards_that_were_checked_to_their_end() -> None:
    rows = [check(found=2), check(found=1, error="Input/output error"), check(finished=False)]
    first, absent = summary_lines(rows, [7], dry_run=False)
    assert first == "3 findings; 1 of 3 shards checked to the end."
    assert absent == "Not checked, because no living node has them open: shards 7."
    assert summary_lines([check()], [], dry_run=True) == ["0 findings; 1 of 1 shard checked to the end."]
