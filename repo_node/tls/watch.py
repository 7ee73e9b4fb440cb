"""Certificates in use: noticed when their files change, replaced if the new ones are right, announced before they end.

Each process of a node looks for itself. What was shaken hands on before goes on as it was.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from repo_node.config import NodeConfig
from repo_node.metrics import Metrics
from repo_node.tls.certificates import CertificateError, Certified, Stamps, files_of, moment, readers, stamps_of
from repo_node.tls.contexts import LiveContext
from sharding.tasks import stop, wait

log = logging.getLogger("holdfast.tls")

LOOK_SECONDS = 1.0
"""How often the files are looked at; they are read when two looks in a row have seen the same change."""

WARNING_SECONDS_MAX = 14 * 86_400.0
WARNING_SHARE = 1 / 5
"""Of a certificate's whole validity, when that is less: some live for days."""

WARNING_PERIOD_SECONDS = 6 * 3600.0


@dataclass(slots=True)
class InUse:
    """The certificate of one listener."""

    listener: str
    files: tuple[Path, ...]
    read: Callable[[], Certified]
    current: Certified
    taken: Stamps
    """How the files were when they were read last, to whatever end."""
    listening: LiveContext = field(init=False)
    calling: LiveContext | None = field(init=False)
    seen: Stamps = field(init=False)
    warned_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.seen = self.taken
        self.listening = LiveContext(self.current.listening)
        self.calling = None if self.current.calling is None else LiveContext(self.current.calling)

    def use(self, new: Certified) -> None:
        """Make every handshake with ``new`` from now on."""
        self.current = new
        self.listening.now = new.listening
        if self.calling is not None and new.calling is not None:
            self.calling.now = new.calling


class Certificates:
    """The certificates of a node in one of its processes. Made by ``load``; ``run`` it in a task.

    ``metrics`` are given in the process that speaks for the node: it alone tells when one ends.
    """

    def __init__(self, config: NodeConfig, in_use: Sequence[InUse], metrics: Metrics | None) -> None:
        self._in_use = {one.listener: one for one in in_use}
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._listens_to_peers = config.internal.listens_with_tls
        for one in in_use:
            self._tell(one)

    @property
    def any(self) -> bool:
        """Whether the node has certificates at all."""
        return bool(self._in_use)

    @property
    def public(self) -> ssl.SSLContext | None:
        """For the listener for clients."""
        return self._in_use["http"].listening if "http" in self._in_use else None

    @property
    def internal(self) -> ssl.SSLContext | None:
        """For the listener for peers."""
        return self._in_use["internal"].listening if self._listens_to_peers else None

    @property
    def to_peers(self) -> ssl.SSLContext | None:
        """For calls to peers."""
        return self._in_use["internal"].calling if "internal" in self._in_use else None

    def look_soon(self) -> None:
        """Look at the files now."""
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while self._in_use:
            await wait(self._wake, LOOK_SECONDS)
            self._wake.clear()
            for one in self._in_use.values():
                try:
                    await self._look(one)
                    self._warn(one)
                except Exception:
                    # Nobody would miss this task before a certificate ends.
                    log.exception("a certificate could not be looked at", extra={"facts": {"listener": one.listener}})

    async def _look(self, one: InUse) -> None:
        stamps = await asyncio.to_thread(stamps_of, one.files)
        # Two files of a pair are not written at once: the second look waits for the second of them.
        is_settled, one.seen = stamps == one.seen, stamps
        if stamps == one.taken or not is_settled:
            return
        one.taken = stamps
        facts: dict[str, object] = {"listener": one.listener}
        try:
            one.use(await asyncio.to_thread(one.read))
        except CertificateError as error:
            facts["cause"] = f"{one.listener}.tls.{error.key}: {error}"
            log.error("a changed certificate cannot be used; the one before is kept", extra={"facts": facts})
            return
        facts["ends"] = moment(one.current.ends_at)
        log.info("a changed certificate is in use", extra={"facts": facts})
        self._tell(one)

    def _tell(self, one: InUse) -> None:
        one.warned_at = float("-inf")
        if self._metrics is not None:
            self._metrics.certificate_ends.labels(one.listener).set(one.current.ends_at)

    def _warn(self, one: InUse) -> None:
        """Say, now and then, that a certificate is about to end, or has."""
        now, ends_at = time.time(), one.current.ends_at
        ahead_seconds = min(WARNING_SECONDS_MAX, WARNING_SHARE * (ends_at - one.current.begins_at))
        if self._metrics is None or now < ends_at - ahead_seconds or now - one.warned_at < WARNING_PERIOD_SECONDS:
            return
        one.warned_at = now
        facts = {"listener": one.listener, "file": str(one.files[0]), "ends": moment(ends_at)}
        if now < ends_at:
            log.warning("a certificate ends soon; replace its file", extra={"facts": facts})
        else:
            log.error("a certificate has ended; replace its file", extra={"facts": facts})


@asynccontextmanager
async def certificates_in_use(config: NodeConfig, metrics: Metrics | None) -> AsyncIterator[Certificates]:
    """Have the certificates that a node's file names, and keep looking at them. Raises ``CertificateError``."""
    certificates = await load(config, metrics)
    looking = asyncio.create_task(certificates.run())
    try:
        yield certificates
    finally:
        await stop((looking,))


async def load(config: NodeConfig, metrics: Metrics | None) -> Certificates:
    sections = {"http": config.http.tls, "internal": config.internal.tls}
    in_use = []
    for listener, read in readers(config).items():
        section = sections[listener]
        assert section is not None
        files = files_of(section)
        # Before they are read: what changes meanwhile is seen as a change.
        stamps = await asyncio.to_thread(stamps_of, files)
        in_use.append(InUse(listener, files, read, await asyncio.to_thread(read), stamps))
    return Certificates(config, in_use, metrics)
