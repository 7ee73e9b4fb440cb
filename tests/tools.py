"""What a test needs beyond Python: a sentence where it is absent, a failure where it must not be."""

from __future__ import annotations

import os
import shutil
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
