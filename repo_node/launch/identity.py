"""As whom Postgres runs: it refuses to run as root, and must reach its programs and its data all the same.

An ordinary user runs it as itself. Root runs it in a user namespace in which root is called nobody: to
the outside the files stay root's, so no directory on the way needs to be opened to anybody. So does a
user without a name, which initdb would refuse. Where such namespaces are off, root has it run as the
user nobody, out of a directory made for that alone.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NOBODY = 65534
PUBLIC_PARENTS = ("/var/lib", "/var/tmp", "/tmp")  # noqa: S108 -- mkdtemp makes the directory inside
PROBE_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to start a program: words put before its command line, or another user and group."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def start(
        self, arguments: Sequence[str | Path], output: IO[bytes], environment: Mapping[str, str], directory: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, so that Ctrl-C on the terminal does not reach it."""
        options: dict[str, Any] = {}
        if self.uid is not None:
            options = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(
            [*self.prefix, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
            **options,
        )

    def give(self, path: Path) -> None:
        """Make ``path``, which Holdfast just created, belong to the user that the program runs as."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def find_namespace() -> Identity | None:
    """Return the identity of a user namespace in which this user is called nobody, if the system allows one."""
    unshare, probe_program = shutil.which("unshare"), shutil.which("id")
    if unshare is None or probe_program is None:
        return None
    prefix = (unshare, "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
    # initdb wants a name for its user, and so does id -un.
    probe_command = [*prefix, probe_program, "-un"]
    try:
        probe = subprocess.run(probe_command, capture_output=True, timeout=PROBE_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Identity(prefix) if probe.returncode == 0 else None


def has_name(uid: int) -> bool:
    """Return whether the system knows a user with this id; containers often run under one it does not know."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def find_nobody() -> Identity:
    """Return the identity of the system's user nobody."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Identity(uid=NOBODY, gid=NOBODY)
    return Identity(uid=entry.pw_uid, gid=entry.pw_gid)


def make_public_home(parents: Sequence[str] = PUBLIC_PARENTS) -> Path:
    """Create a directory with mode 0711 that every user can pass through, in the first parent that allows it.

    Raises ``OSError`` when none does.
    """
    failures = []
    for parent in parents:
        if not can_everybody_pass(Path(parent)):
            failures.append(f"{parent}: not open to all users")
            continue
        try:
            home = Path(tempfile.mkdtemp(prefix="holdfast-postgres-", dir=parent))
        except OSError as error:
            failures.append(f"{parent}: {error.strerror}")
            continue
        home.chmod(0o711)
        return home
    raise OSError(f"found no place for a Postgres that runs as nobody ({'; '.join(failures)})")


def can_everybody_pass(path: Path) -> bool:
    """Return whether ``path`` and every directory above it let all users through."""
    try:
        return all(step.stat().st_mode & 0o001 for step in (path, *path.parents))
    except OSError:
        return False
