"""What a test needs beyond Python: a sentence where it is absent, a failure where it must not be.

And what a test asks of the system about the process it tests.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

MAY_NOT_SKIP = "HOLDFAST_TESTS_MAY_NOT_SKIP"


def require_tool(name: str, why: str) -> str:
    """Return the path of a program, or skip the test."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        skip(f"{name} is not installed: {why}")
    return path


def require_root(why: str) -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        skip(f"this needs root: {why}")


def skip(reason: str) -> NoReturn:
    """Skip the test; where everything must be at hand, as in continuous integration, fail it instead."""
    if os.environ.get(MAY_NOT_SKIP):
        pytest.fail(f"may not skip here: {reason}")
    pytest.skip(reason)


def open_below(directory: Path, pid: int | str = "self") -> list[Path]:
    """Return what a process has open in ``directory`` and below, once for each descriptor.

    Descriptors of anything else come and go with what other tests left to other threads.
    """
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(Path(os.readlink(descriptor)))
    return [path for path in found if path.is_relative_to(directory)]
