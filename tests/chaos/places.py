"""Where the clients of a run work, and who they are. Pure.

``LOCAL`` and ``SECOND`` are shown together by ``VIRTUAL``, which puts what is deployed there into ``SECOND``, which has a
quota, so that its use is counted. ``BUILDER`` is an ordinary user, whose rights end at the folders that ``is_open``.
"""

from __future__ import annotations

from typing import Any

LOCAL, SECOND, VIRTUAL = "generic-local", "generic-second", "generic-all"
ADMIN, BUILDER, GUEST = "admin", "builder", "guest"
OPEN = "open"
SUFFIX = ".bin"
"""Of every artifact's name, and of no folder's."""

QUOTA_BYTES = 1 << 40

VIRTUAL_DOCUMENT = {"rclass": "virtual", "repositories": [LOCAL, SECOND], "defaultDeploymentRepo": SECOND}


def folder_of(worker: int, *, is_open: bool = False, repository: str = LOCAL) -> str:
    """Return a folder in which one worker alone writes."""
    return "/".join([repository, f"worker-{worker}", *([OPEN] if is_open else [])])


def is_open(path: str) -> bool:
    """Say whether ``BUILDER`` may read and write what is at a path."""
    return path.split("/")[2] == OPEN


def through_view(path: str) -> str:
    """Return a path as the virtual repository has it."""
    return f"{VIRTUAL}/{path.partition('/')[2]}"


def target(user: str, pattern: str, letters: str) -> dict[str, Any]:
    """Return a permission target that gives a user rights in both repositories."""
    return {
        "repositories": [LOCAL, SECOND],
        "includesPattern": pattern,
        "principals": {"users": {user: list(letters)}},
    }
