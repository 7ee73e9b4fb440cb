"""Certificates in use: replaced when their files change and are right, announced before they end."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from repo_node.config import NodeConfig, PeerTlsSection, TlsSection
from repo_node.metrics import Metrics
from repo_node.tls import watch
from repo_node.tls.contexts import shake_hands
from repo_node.tls.watch import Certificates, certificates_in_use
from tests.certificates import Authority, Pair
from tests.repo_node.nodes import configure

ENDS = "holdfast_certificate_expiry_timestamp_seconds"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)


def config_of(directory: Path, pair: Pair, authority: Authority) -> NodeConfig:
    files = {"certificate_file": pair.certificate, "key_file": pair.key}
    return configure(
        "postgresql://nowhere",
        directory,
        http={"tls": TlsSection(**files)},
        internal={"tls": PeerTlsSection(**files, ca_file=authority.certificate)},
    )


@asynccontextmanager
async def watched(
    directory: Path, pair: Pair, authority: Authority, metrics: Metrics | None = None
) -> AsyncIterator[Certificates]:
    async with certificates_in_use(config_of(directory, pair, authority), metrics) as certificates:
        yield certificates


def shown(certificates: Certificates, authority: Authority) -> str:
    """Return the serial number of what the listener for clients shows to one who believes ``authority``."""
    assert certificates.public is not None
    client = ssl.create_default_context(cafile=authority.certificate)
    found = shake_hands(certificates.public, client, "node-1").getpeercert()
    assert found is not None
    return str(found["serialNumber"])


async def changed(certificates: Certificates, authority: Authority, before: str) -> str:
    async with asyncio.timeout(10):
        while (now := shown(certificates, authority)) == before:
            await asyncio.sleep(0.01)
    return now


async def test_a_renewed_certificate_is_shown_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    pair, metrics = authority.pair("node-1"), Metrics()
    async with watched(tmp_path, pair, authority, metrics) as certificates:
        before = shown(certificates, authority)
        first = metrics.registry.get_sample_value(ENDS, {"listener": "http"})
        pair.replace(authority.pair("node-1", days=3))
        await changed(certificates, authority, before)
        assert certificates.internal is not None and certificates.to_peers is not None
        shake_hands(certificates.internal, certificates.to_peers, "node-1")
        later = metrics.registry.get_sample_value(ENDS, {"listener": "http"})
        assert first is not None and later is not None and later - first > 80_000


async def test_what_peers_believe_changes_too(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "other")
    pair, believed = authority.pair("node-1"), tmp_path / "believed.crt"
    believed.write_bytes(authority.certificate.read_bytes())
    config = config_of(tmp_path, pair, authority)
    assert config.internal.tls is not None
    tls = config.internal.tls.model_copy(update={"ca_file": believed})
    config = config.model_copy(update={"internal": config.internal.model_copy(update={"tls": tls})})
    async with (
        certificates_in_use(config, None) as certificates,
        watched(tmp_path, other.pair("node-1"), other) as others,
    ):
        assert certificates.internal is not None and others.to_peers is not None
        with pytest.raises(ssl.SSLError):
            shake_hands(certificates.internal, others.to_peers, "node-1")
        before = shown(certificates, authority)
        believed.write_bytes(authority.certificate.read_bytes() + other.certificate.read_bytes())
        pair.replace(other.pair("node-1"))
        await changed_for(certificates, other)
        assert before != shown(certificates, other)
        async with asyncio.timeout(10):
            while not meets(certificates, others):
                await asyncio.sleep(0.01)


async def changed_for(certificates: Certificates, authority: Authority) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                shown(certificates, authority)
                return
            except ssl.SSLError:
                await asyncio.sleep(0.01)


def meets(one: Certificates, other: Certificates) -> bool:
    assert one.internal is not None and other.to_peers is not None
    try:
        shake_hands(one.internal, other.to_peers, "node-1")
    except ssl.SSLError:
        return False
    return True


@pytest.mark.parametrize("days", [-1, None], ids=["expired", "garbage"])
async def test_a_changed_certificate_that_is_wrong_is_told_of_and_not_used(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int | None
) -> None:
    pair, metrics = authority.pair("node-1"), Metrics()
    async with watched(tmp_path, pair, authority, metrics) as certificates:
        before = shown(certificates, authority)
        end = metrics.registry.get_sample_value(ENDS, {"listener": "http"})
        if days is None:
            pair.certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense")
        else:
            pair.replace(authority.pair("node-1", days=days))
        async with asyncio.timeout(10):
            while len([one for one in caplog.records if one.levelno == logging.ERROR]) < 2:
                await asyncio.sleep(0.01)
        told = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert {one.facts["listener"] for one in told} == {"http", "internal"}  # type: ignore[attr-defined]
        assert shown(certificates, authority) == before
        assert metrics.registry.get_sample_value(ENDS, {"listener": "http"}) == end
        await asyncio.sleep(0.1)
        assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 2
        pair.replace(authority.pair("node-1"))
        await changed(certificates, authority, before)


async def test_looking_goes_on_whatever_comes_of_one_look(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.pair("node-1")
    async with watched(tmp_path, pair, authority) as certificates:
        before = shown(certificates, authority)
        with monkeypatch.context() as broken:
            broken.setattr(watch, "stamps_of", lambda _: 1 / 0)
            async with asyncio.timeout(10):
                while not any("could not be looked at" in one.message for one in caplog.records):
                    await asyncio.sleep(0.01)
        pair.replace(authority.pair("node-1"))
        await changed(certificates, authority, before)


@pytest.mark.parametrize(
    ("left_seconds", "message"),
    [
        (watch.WARNING_SECONDS_MAX * 4, None),
        (3600.0, "a certificate ends soon; replace its file"),
        (-3600.0, "a certificate has ended; replace its file"),
    ],
)
async def test_the_end_of_a_certificate_is_told_before_and_after_but_not_all_the_time(
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    left_seconds: float,
    message: str | None,
) -> None:
    async with watched(tmp_path, authority.pair("node-1", days=90), authority, Metrics()) as certificates:
        end = certificates._in_use["http"].current.ends_at
        monkeypatch.setattr(watch.time, "time", lambda: end - left_seconds)
        await asyncio.sleep(0.2)
    told = [one.message for one in caplog.records if one.name == "holdfast.tls"]
    assert told == ([] if message is None else [message, message])


async def test_a_worker_leaves_the_warnings_to_the_main_process(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path, authority.pair("node-1"), authority):
        monkeypatch.setattr(watch.time, "time", lambda: time.monotonic() + 1e10)
        await asyncio.sleep(0.1)
    assert [one for one in caplog.records if one.name == "holdfast.tls"] == []


async def test_a_node_without_certificates_looks_at_nothing(tmp_path: Path) -> None:
    async with certificates_in_use(configure("postgresql://nowhere", tmp_path), None) as certificates:
        assert (certificates.public, certificates.internal, certificates.to_peers) == (None, None, None)
        assert not certificates.any
