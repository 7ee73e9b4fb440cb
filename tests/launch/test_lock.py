"""The lock on a cluster's directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from repo_node.launch.errors import DirectoryBusy
from repo_node.launch.lock import hold_directory

HOLD = """
import sys, time
from pathlib import Path
from repo_node.launch.lock import hold_directory
with hold_directory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_names_the_holder_when_the_directory_is_held(tmp_path: Path) -> None:
    holder = f"process {os.getpid()}.*holdfast down"
    with hold_directory(tmp_path), pytest.raises(DirectoryBusy, match=holder), hold_directory(tmp_path):
        pytest.fail("held twice")


def test_lock_is_free_again_when_its_holder_was_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(DirectoryBusy) as caught, hold_directory(tmp_path):
        pytest.fail("held twice")
    assert caught.value.pid == holder.pid
    holder.kill()
    holder.communicate()
    with hold_directory(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
