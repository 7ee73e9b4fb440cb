"""What a handshake is made with: protocol versions, ciphers, and who must show which certificate."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

from repo_node.tls.handshakes import Handshakes

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption alone. TLS 1.3 knows no others."""

PROTOCOLS = ("http/1.1",)
FLIGHTS = 4
"""Turns of each end within which any handshake is over."""

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL."""


class EncryptedKey(Exception):
    """The key has a passphrase; nobody would be there to type it."""


class LiveContext(ssl.SSLContext):
    """Makes every new handshake with ``now``, which is replaced when files change."""

    now: ssl.SSLContext
    handshakes: Handshakes | None
    """Where those that others begin are counted."""

    def __new__(cls, now: ssl.SSLContext) -> LiveContext:
        """Begin with ``now``."""
        made = super().__new__(cls, now.protocol)
        made.now = now
        made.handshakes = None
        return made

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Begin a handshake, as event loops do. Raises ``TooManyHandshakes``, upon which they drop the connection."""
        if self.handshakes is None:
            return self.now.wrap_bio(*args, **options)
        self.handshakes.check()
        begun = self.now.wrap_bio(*args, **options)
        self.handshakes.begin(begun)
        return begun


def for_clients(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the context of the listener for clients. Raises ``OSError`` (``ssl.SSLError``), ``EncryptedKey``."""
    return with_certificate(bare(ssl.PROTOCOL_TLS_SERVER), certificate, key)


def for_peers(certificate: Path, key: Path, authority: Path, revoked: Path | None) -> ssl.SSLContext:
    """Return the context of the listener for peers, which must show a certificate of ``authority``.

    Raises as ``for_clients``.
    """
    context = trusting(bare(ssl.PROTOCOL_TLS_SERVER), authority, revoked)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would not look at the certificate again.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return with_certificate(context, certificate, key)


def to_peers(certificate: Path, key: Path, authority: Path, revoked: Path | None) -> ssl.SSLContext:
    """Return the context for calls to peers: theirs must be of ``authority`` and have the name that is asked for.

    Raises as ``for_clients``.
    """
    context = trusting(bare(ssl.PROTOCOL_TLS_CLIENT), authority, revoked)
    context.hostname_checks_common_name = False
    return with_certificate(context, certificate, key)


def reading(certificate: str, *, at_any_time: bool = False) -> ssl.SSLContext:
    """Return the context of a client who trusts this one certificate, whatever its names, and gets to read it."""
    context = bare(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if at_any_time:
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    return context


def bare(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(PROTOCOLS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def trusting(context: ssl.SSLContext, authority: Path, revoked: Path | None) -> ssl.SSLContext:
    context.load_verify_locations(authority)
    if revoked is not None:
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def with_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> ssl.SSLContext:
    context.load_cert_chain(certificate, key, password=refuse_passphrase)
    return context


def refuse_passphrase() -> str:
    raise EncryptedKey


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> ssl.SSLObject:
    """Let two contexts meet, in memory, and return the client's end. Raises ``ssl.SSLError`` when one refuses.

    ``name`` is what the client asks for.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_side=False, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(FLIGHTS):
        for end in (asking, answering):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return asking
