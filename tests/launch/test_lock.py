"""The lock on a cluster's directory."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
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


def test_lock_waits_for_a_holder_that_is_just_giving_it_up(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as it stands when the pid is gone and the descriptor not yet closed
    closing = threading.Timer(0.3, os.close, (descriptor,))
    closing.start()
    with hold_directory(tmp_path):
        closing.join()
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
