"""What the bytes alone cost: a bare program that receives, hashes and writes them, and no more.

Its parts are known for one kind of machine; a run in which they cost far more was disturbed, or made
on another kind. ``python -m benchmarks.floor --help`` measures it by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

K = TypeVar("K")
P = ParamSpec("P")

GB = 1e9
BLOCK_BYTES = 1 << 20
FILE_BYTES = 64 << 20
HASHES = ("sha256", "sha1", "md5")
DISTURBED_FACTOR = 1.3
REFERENCE = {
    "loopback_both_ends": 0.29,
    "sha256": 0.68,
    "sha1": 0.62,
    "md5": 1.61,
    "file_write_fsync": 0.23,
    "page_cache_read": 0.11,
}
"""CPU seconds per GB on two cores of the kind the aims were set on."""

PASSES = 3
COPIES = 2
OBJECTS_MAX = 300
SMALL_FILES, SMALL_FILE_BYTES, SMALL_FILE_REFERENCE = 500, 4 << 10, 0.38
REQUESTS, HEAD_BYTES = 5_000, 400
KEPT_BYTES = 128 << 20
GROWTH_FACTOR = 4
GROWTH_MEASURED = 0.25
"""The page cache grows by so many times the volume, and the last quarter of that counts."""


@dataclass(frozen=True, slots=True)
class Floor:
    """CPU seconds per GB of each part, and of a whole upload and download by size in bytes.

    ``growing_file_write`` is a file write that makes the page cache larger instead of reusing its memory.
    ``small_file`` and ``answer`` are CPU seconds per 1,000: of a 4 KiB file with fsync of itself and its directory,
    and of a request that is answered without a body.
    """

    parts: dict[str, float]
    growing_file_write: float
    small_file: float
    answer: float
    put: dict[int, float]
    get: dict[int, float]

    def dear(self) -> set[str]:
        """Return the parts that cost more than ``DISTURBED_FACTOR`` times their reference."""
        return {name for name, seconds in self.parts.items() if seconds > REFERENCE[name] * DISTURBED_FACTOR}

    def cheap(self) -> set[str]:
        """Return the parts whose reference is more than ``DISTURBED_FACTOR`` times what they cost."""
        return {name for name, seconds in self.parts.items() if seconds < REFERENCE[name] / DISTURBED_FACTOR}


def least(floors: Sequence[Floor]) -> Floor:
    """Return the least of each figure: what disturbs a bare program can only make it dearer."""

    def merge(found: Sequence[dict[K, float]]) -> dict[K, float]:
        return {key: min(one[key] for one in found) for key in found[0]}

    parts, put, get = (merge([getattr(floor, name) for floor in floors]) for name in ("parts", "put", "get"))
    growing, small_file, answer = (
        min(getattr(floor, name) for floor in floors) for name in ("growing_file_write", "small_file", "answer")
    )
    return Floor(parts, growing, small_file, answer, put, get)


def measure_floor(directory: Path, sizes: Sequence[int], volume_bytes: int) -> Floor:
    """Measure everything with about ``volume_bytes`` each, in files under ``directory``."""
    with tempfile.TemporaryDirectory(prefix="floor-", dir=directory) as place:
        path = Path(place)
        parts = measure_parts(path, volume_bytes)
        small_file, answer = write_small_files(path), answer_requests()
        put, get = {}, {}
        for size in sizes:
            count = max(1, min(volume_bytes // size, OBJECTS_MAX))
            with tempfile.TemporaryDirectory(dir=path) as objects:
                put[size] = receive_and_store(Path(objects), size, count) / (size * count) * GB
                get[size] = read_and_send(Path(objects), size, count) / (size * count) * GB
        # Last: afterwards the memory that the cache gave back has to be won anew.
        growing = measure_growth(path, volume_bytes * GROWTH_FACTOR)
    return Floor(parts, growing, small_file, answer, put, get)


def measure_parts(directory: Path, volume_bytes: int) -> dict[str, float]:
    """Return the CPU seconds per GB of each part, the least of three times."""
    share = max(FILE_BYTES, volume_bytes // PASSES)
    found = [measure_parts_once(directory, share) for _ in range(PASSES)]
    return {name: min(parts[name] for parts in found) for name in REFERENCE}


def measure_parts_once(directory: Path, volume_bytes: int) -> dict[str, float]:
    blocks, files = volume_bytes // BLOCK_BYTES, volume_bytes // FILE_BYTES
    block, path = os.urandom(BLOCK_BYTES), directory / "part"
    seconds = {"loopback_both_ends": transfer(block, blocks)}
    for name in HASHES:
        seconds[name] = spent(hash_blocks, name, block, blocks)
    per_gb = {name: value / (blocks * BLOCK_BYTES) * GB for name, value in seconds.items()}
    write_file(path, block)
    written = 0.0
    for _ in range(files):
        path.unlink()
        written += spent(write_file, path, block)
    read = sum(spent(read_file, path) for _ in range(files))
    path.unlink()
    per_file = {"file_write_fsync": written, "page_cache_read": read}
    return per_gb | {name: value / (files * FILE_BYTES) * GB for name, value in per_file.items()}


def write_small_files(directory: Path) -> float:
    """Return the CPU seconds per 1,000 files of 4 KiB, each made durable with the directory it is in."""
    body = os.urandom(SMALL_FILE_BYTES)

    def write(number: int) -> None:
        with (place / str(number)).open("wb", buffering=0) as file:
            file.write(body)
            os.fdatasync(file.fileno())
        os.fsync(opened)

    with tempfile.TemporaryDirectory(dir=directory) as path:
        place, opened = Path(path), os.open(path, os.O_RDONLY)
        seconds = sum(spent(write, number) for number in range(SMALL_FILES))
        os.close(opened)
    return seconds / SMALL_FILES * 1000


def answer_requests() -> float:
    """Return this side's CPU seconds per 1,000 requests over loopback, each answered by a head alone."""
    request, answer = b"?" * HEAD_BYTES, b"!" * HEAD_BYTES

    def ask(theirs: socket.socket) -> None:
        for _ in range(REQUESTS):
            theirs.sendall(request)
            theirs.recv(HEAD_BYTES, socket.MSG_WAITALL)

    with other_end(ask) as ours:
        began = time.process_time()
        while ours.recv(HEAD_BYTES, socket.MSG_WAITALL):
            ours.sendall(answer)
        return (time.process_time() - began) / REQUESTS * 1000


def measure_growth(directory: Path, volume_bytes: int) -> float:
    """Return the CPU seconds per GB of writing files that all stay, once the cache has grown by most of the volume."""
    block = os.urandom(BLOCK_BYTES)
    paths = [directory / f"growing-{number}" for number in range(max(1, volume_bytes // FILE_BYTES))]
    seconds = [spent(write_file, path, block) for path in paths]
    for path in paths:
        path.unlink()
    last = seconds[-max(1, round(len(seconds) * GROWTH_MEASURED)) :]
    return sum(last) / (len(last) * FILE_BYTES) * GB


def spent(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """Return the CPU seconds of one call."""
    began = time.process_time()
    work(*args, **kwargs)
    return time.process_time() - began


def hash_blocks(name: str, block: bytes, count: int) -> None:
    digest = hashlib.new(name)
    for _ in range(count):
        digest.update(block)


def write_file(path: Path, block: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(FILE_BYTES // BLOCK_BYTES):
            file.write(block)
        os.fdatasync(file.fileno())


def read_file(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK_BYTES):
            pass


@contextmanager
def other_end(work: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """Yield a connection over loopback whose other end a child process works at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if not child:
            status = 1
            try:
                with socket.create_connection(listener.getsockname()) as theirs:
                    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    work(theirs)
                status = 0
            finally:
                os._exit(status)
        ours, _ = listener.accept()
    try:
        with ours:
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield ours
    finally:
        os.waitpid(child, 0)


def transfer(block: bytes, count: int) -> float:
    """Send ``count`` blocks over loopback; return the CPU seconds of both ends."""

    def send(theirs: socket.socket) -> None:
        for _ in range(count):
            theirs.sendall(block)

    before, began = children_cpu_seconds(), time.process_time()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with other_end(send) as ours:
        while ours.recv_into(buffer):
            pass
        ended = time.process_time()
    return ended - began + children_cpu_seconds() - before


def children_cpu_seconds() -> float:
    """Return the CPU seconds of the children this process has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def receive_and_store(directory: Path, size: int, count: int) -> float:
    """Receive, hash and durably write ``count`` objects twice, answering each; return this side's CPU seconds."""
    body = os.urandom(min(size, BLOCK_BYTES))

    def send(theirs: socket.socket) -> None:
        for _ in range(count):
            for start in range(0, size, len(body)):
                theirs.sendall(body[: size - start])
            theirs.recv(1)

    seconds = 0.0
    with other_end(send) as ours:
        for number in range(count):
            seconds += spent(store, ours, directory, number, size)
            # Only what the downloads will read is kept; memory that is free again is what the next file takes.
            kept = 1 if number < kept_objects(size) else 0
            for copy in range(kept, COPIES):
                file_of(directory, number, copy).unlink()
    return seconds


def store(ours: socket.socket, directory: Path, number: int, size: int) -> None:
    digests = [hashlib.new(name) for name in HASHES]
    buffer = memoryview(bytearray(min(size, BLOCK_BYTES)))
    paths = [file_of(directory, number, copy) for copy in range(COPIES)]
    files = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) for path in paths]
    left = size
    while left:
        block = buffer[: ours.recv_into(buffer, min(left, len(buffer)))]
        left -= len(block)
        for digest in digests:
            digest.update(block)
        for file in files:
            os.write(file, block)
    for file in files:
        os.fdatasync(file)
        os.close(file)
    ours.sendall(b"+")


def kept_objects(size: int) -> int:
    return max(1, KEPT_BYTES // size)


def file_of(directory: Path, number: int, copy: int) -> Path:
    return directory / f"{number}.{copy}"


def read_and_send(directory: Path, size: int, count: int) -> float:
    """Send ``count`` of the objects from the page cache on request; return this side's CPU seconds."""

    def receive(theirs: socket.socket) -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for _ in range(count):
            theirs.sendall(b"?")
            left = size
            while left:
                left -= theirs.recv_into(buffer, min(left, len(buffer)))

    buffer = memoryview(bytearray(min(size, BLOCK_BYTES)))
    kept = min(count, kept_objects(size))
    with other_end(receive) as ours:
        began = time.process_time()
        for number in range(count):
            ours.recv(1)
            with file_of(directory, number % kept, 0).open("rb", buffering=0) as file:
                while length := file.readinto(buffer):
                    ours.sendall(buffer[:length])
        return time.process_time() - began


def main() -> None:
    """Measure the floor and print it as JSON; ``bench_transfer`` runs this in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(), help="where files are written and removed again")
    parser.add_argument("--sizes", type=int, nargs="*", default=[4 << 10, 64 << 20], help="object sizes in bytes")
    parser.add_argument("--volume", type=int, default=512 << 20, help="bytes that each measurement moves")
    arguments = parser.parse_args()
    print(json.dumps(asdict(measure_floor(arguments.directory, arguments.sizes, arguments.volume)), indent=2))


if __name__ == "__main__":
    main()
