"""What processes have spent, read from /proc: CPU time with that of children that have ended, and memory."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SCANS_MAX = 20


@dataclass(frozen=True, slots=True)
class Times:
    """A process: its parent, and the CPU seconds of itself and of the children it has buried."""

    parent: int
    seconds: float


def cpu_seconds(roots: Sequence[int]) -> dict[int, float]:
    """Return for each process of ``roots`` the CPU seconds that it and everything below it have used so far.

    A process that has ended counts in its parent, which must have waited for it; so the difference of
    two readings misses nobody, provided that nobody came or went during a reading.
    Raises ``ProcessLookupError`` when one of ``roots`` is gone.
    """
    for _ in range(SCANS_MAX):
        found = scan()
        families = {root: family(root, found) for root in roots}
        again = scan()
        if all(family(root, again) == members for root, members in families.items()):
            break
    for root in roots:
        if root not in found:
            raise ProcessLookupError(f"process {root} has ended")
    return {root: sum(found[pid].seconds for pid in members) for root, members in families.items()}


def scan() -> dict[int, Times]:
    """Return every process there is."""
    found = {}
    for entry in os.listdir(PROC):
        # Whoever ends meanwhile is counted by its parent.
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.isdigit():
                found[int(entry)] = parse_stat((PROC / entry / "stat").read_text())
    return found


def parse_stat(text: str) -> Times:
    """Return what a line of /proc/PID/stat says (proc(5)); a program's name may contain anything."""
    fields = text.rpartition(")")[2].split()
    return Times(int(fields[1]), sum(map(int, fields[11:15])) / TICKS_PER_SECOND)


def family(root: int, processes: Mapping[int, Times]) -> set[int]:
    """Return ``root`` and all below it."""
    children = defaultdict(list)
    for pid, times in processes.items():
        children[times.parent].append(pid)
    members, waiting = set(), [root] if root in processes else []
    while waiting:
        pid = waiting.pop()
        members.add(pid)
        waiting += children[pid]
    return members


def processes_below(roots: Sequence[int]) -> list[int]:
    """Return the processes of ``roots`` and all below them, as they are now."""
    found = scan()
    return sorted({pid for root in roots for pid in family(root, found)})


def reset_peak_rss(pids: Sequence[int]) -> None:
    """Let the peak of each process begin anew, where the kernel can do that."""
    for pid in pids:
        with suppress(OSError):
            (PROC / str(pid) / "clear_refs").write_text("5")


def peak_rss_mib(pid: int) -> float:
    """Return the highest resident size of a process since its last reset, in MiB. Raises ``FileNotFoundError``."""
    return memory_mib(pid, "VmHWM")


def rss_mib(pid: int) -> float:
    """Return the resident size of a process, in MiB. Raises ``FileNotFoundError``."""
    return memory_mib(pid, "VmRSS")


def memory_mib(pid: int, line: str) -> float:
    status = (PROC / str(pid) / "status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024
