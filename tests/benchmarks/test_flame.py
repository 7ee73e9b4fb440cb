"""A flame graph names no path of the machine it was taken on."""

from __future__ import annotations

from benchmarks.flame import named

GRAPH = (
    '<text id="title" fill="x" y="24.00">/home/x/.venv/bin/py-spy record --pid 6 --output /home/x/f.svg</text>'
    "<g><title>process 6:&quot;/home/x/bin/python -m repo_node node --config /home/x/c.toml&quot; (12 samples, 9%)</title>"
    '<text x="0">process 6:&quot;/home/x/bin/python -m</text></g><g><title>run (repo_node/app.py:8) (5 samples)</title>'
)


def test_a_graph_has_the_name_of_its_work_and_no_paths() -> None:
    graph = named(GRAPH, "PUT 4 KiB")
    assert '<text id="title" fill="x" y="24.00">PUT 4 KiB</text>' in graph
    assert "home" not in graph
    assert "<title>process 6  (12 samples, 9%)</title>" in graph
    assert "run (repo_node/app.py:8) (5 samples)" in graph
