"""What a process has used and let go of does not stay its memory."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio
from pathlib import Path
from repo_node import memory
from repo_node.auth.passwords import hash_password

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

memory.LOOK_SECONDS = 0.01
memory.tune()
began = resident_mib()
hash_password("secret")
print(resident_mib() - began)
pieces = [[b"x" * 250_000, b"x" * 30_000] for _ in range(100)]
for piece in pieces:
    del piece[0]
print(resident_mib() - began)

async def look():
    async with asyncio.timeout(0.5):
        await memory.give_back()

try:
    asyncio.run(look())
except TimeoutError:
    pass
print(resident_mib() - began)
"""


def test_what_was_used_once_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    hashed, freed, given_back = map(float, done.stdout.split())
    assert hashed < 8
    assert freed > 16
    assert given_back < 8
