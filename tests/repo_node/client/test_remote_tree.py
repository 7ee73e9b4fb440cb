from __future__ import annotations

from pathlib import Path

import pytest

from repo_node.client.remote_tree import part_path_of


@pytest.mark.parametrize(
    ("siblings", "name"),
    [
        ([], "x.part"),
        (["y.part"], "x.part"),
        (["x.part"], "x.1.part"),
        (["x.part.etag"], "x.1.part"),
        (["x.part", "x.1.part", "x.2.part.etag"], "x.3.part"),
    ],
)
def test_a_part_file_never_has_the_name_of_a_sibling(siblings: list[str], name: str) -> None:
    assert part_path_of(Path("out/x"), siblings) == Path("out") / name
