"""What processes have spent: lines of /proc, families, children that have ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.measure import Times, cpu_seconds, family, parse_stat, peak_rss_mib, processes_below, rss_mib

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_stat_of_a_program_with_any_name_is_read() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    rest = "S 7 1 1 0 -1 4194304 100 0 0 0 10 20 30 40 20 0 1"
    assert parse_stat(f"12 (a) (b) c) {rest}") == Times(7, 100 / ticks)


def test_family_is_a_process_and_all_below_it() -> None:
    processes = {1: Times(0, 0), 2: Times(1, 0), 3: Times(2, 0), 4: Times(1, 0), 5: Times(9, 0)}
    assert family(2, processes) == {2, 3}
    assert family(1, processes) == {1, 2, 3, 4}
    assert family(8, processes) == set()


def test_child_that_has_ended_is_counted() -> None:
    before = cpu_seconds([os.getpid()])[os.getpid()]
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert cpu_seconds([os.getpid()])[os.getpid()] - before >= 0.25


def test_process_that_is_gone_is_told() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessLookupError):
        cpu_seconds([child.pid])


def test_memory_of_a_process_is_read() -> None:
    assert os.getpid() in processes_below([os.getppid()])
    assert 0 < rss_mib(os.getpid()) <= peak_rss_mib(os.getpid())
