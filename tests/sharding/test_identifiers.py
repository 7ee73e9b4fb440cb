"""UUIDv7s: of their time, and no two alike, in whatever process or thread."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from sharding.identifiers import DRAWN_AT_ONCE, uuid7


def test_uuid_is_of_version_7_and_of_its_time() -> None:
    before = time.time_ns() // 1_000_000
    minted = [uuid7() for _ in range(DRAWN_AT_ONCE + 1)]
    after = time.time_ns() // 1_000_000
    for uuid in minted:
        assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
        assert before <= uuid.int >> 80 <= after


def test_threads_never_mint_the_same() -> None:
    with ThreadPoolExecutor(8) as threads:
        minted = [uuid for some in threads.map(lambda _: [uuid7() for _ in range(500)], range(40)) for uuid in some]
    assert len({uuid.int & (1 << 62) - 1 for uuid in minted}) == len(minted)


def test_forked_process_draws_numbers_of_its_own() -> None:
    uuid7()
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.write(sending, b"".join(uuid7().bytes for _ in range(50)))
        os._exit(0)
    os.waitpid(child, 0)
    sent = os.read(receiving, 50 * 16)
    os.close(receiving)
    os.close(sending)
    theirs = {UUID(bytes=sent[i : i + 16]).int & (1 << 62) - 1 for i in range(0, len(sent), 16)}
    assert len(theirs) == 50
    assert not theirs & {uuid7().int & (1 << 62) - 1 for _ in range(DRAWN_AT_ONCE)}
