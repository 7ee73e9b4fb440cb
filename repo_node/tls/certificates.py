"""A node's certificates as its file names them: read, and checked by the handshakes that they are for."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE
from typing import Any

from repo_node.config import NodeConfig, PeerTlsSection, TlsSection
from repo_node.tls import contexts

CERTIFICATE_MARK, KEY_MARK, REVOKED_MARK = "BEGIN CERTIFICATE-----", "PRIVATE KEY-----", "BEGIN X509 CRL-----"
CERTIFICATE_BEGIN, CERTIFICATE_END = f"-----{CERTIFICATE_MARK}", "-----END CERTIFICATE-----"
FILE_BYTES_MAX = 1 << 20
FAULTS = {
    "KEY_VALUES_MISMATCH": ("key_file", "{key} is not the key of the certificate in {certificate}"),
    "KEY_TYPE_MISMATCH": ("key_file", "{key} is not the key of the certificate in {certificate}"),
    "EE_KEY_TOO_SMALL": ("certificate_file", "the key of {certificate} is too short; use RSA of 2048 bits, or P-256"),
    "CA_MD_TOO_WEAK": ("certificate_file", "{certificate} is signed with a digest that is broken; use SHA-256"),
}
"""By the reason that OpenSSL gives: the key that is at fault, and what to say."""


class CertificateError(Exception):
    """A certificate cannot be used. ``key`` is the entry of the TLS section that is at fault."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate that is right, and the contexts that are made with it."""

    listening: ssl.SSLContext
    calling: ssl.SSLContext | None
    begins_at: float
    ends_at: float
    """Its validity, in seconds since the epoch."""


def for_clients(section: TlsSection) -> Certified:
    """Read what the listener for clients shows. Blocks. Raises ``CertificateError``."""
    certificate = read_pair(section)
    listening = made(section, lambda: contexts.for_clients(section.certificate_file, section.key_file))
    return certified(section, listening, None, certificate)


def for_peers(section: PeerTlsSection, node: str) -> Certified:
    """Read what this node shows its peers, and check that they would take it. Blocks. Raises ``CertificateError``."""
    certificate = read_pair(section)
    read_marked("ca_file", section.ca_file, CERTIFICATE_MARK)
    if section.crl_file is not None:
        read_marked("crl_file", section.crl_file, REVOKED_MARK)
    files = (section.certificate_file, section.key_file, section.ca_file, section.crl_file)
    listening = made(section, lambda: contexts.for_peers(*files))
    calling = made(section, lambda: contexts.to_peers(*files))
    found = certified(section, listening, calling, certificate)
    meet_itself(section, listening, calling, node)
    return found


def read_pair(section: TlsSection) -> str:
    """Return the text of the certificate, having looked at its key too. Raises ``CertificateError``."""
    certificate = read_marked("certificate_file", section.certificate_file, CERTIFICATE_MARK)
    read_marked("key_file", section.key_file, KEY_MARK)
    check_private(section.key_file)
    return certificate


def read_marked(name: str, path: Path, mark: str) -> str:
    """Return a PEM file's text. Raises ``CertificateError`` when it has nothing of what ``mark`` begins."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        raise CertificateError(name, f"there is no file {path}") from None
    except OSError as error:
        raise CertificateError(name, f"{path} cannot be read: {error.strerror}") from None
    if mark not in text:
        raise CertificateError(name, f'{path} is no PEM file with "{mark}"')
    return text


def check_private(path: Path) -> None:
    """Check that others cannot read a key; the group of one that root owns may. Raises ``CertificateError``."""
    try:
        found = path.stat()
    except OSError as error:
        raise CertificateError("key_file", f"{path} cannot be read: {error.strerror}") from None
    mode = S_IMODE(found.st_mode)
    if mode & (0o077 if found.st_uid else 0o037):
        raise CertificateError("key_file", f"{path} is open to others (mode {mode:04o}); run: chmod 600 {path}")


def made(section: TlsSection, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return what ``make`` makes of the files of ``section``. Raises ``CertificateError``."""
    try:
        return make()
    except contexts.EncryptedKey:
        name, message = "key_file", "{key} has a passphrase, which nobody could type; remove it"
    except ssl.SSLError as error:
        name, message = FAULTS.get(
            error.reason or "", ("certificate_file", f"{{certificate}} and {{key}} cannot be used: {error}")
        )
    except OSError as error:
        name, message = "certificate_file", f"{{certificate}} and {{key}} cannot be read: {error}"
    files = {"key": section.key_file, "certificate": section.certificate_file}
    raise CertificateError(name, message.format(**files)) from None


def certified(section: TlsSection, listening: ssl.SSLContext, calling: ssl.SSLContext | None, text: str) -> Certified:
    """Return what is known of a certificate that is valid now. Raises ``CertificateError``."""
    _, begun, rest = text.partition(CERTIFICATE_BEGIN)
    own, ended, _ = rest.partition(CERTIFICATE_END)
    if not (begun and ended):
        # Whoever writes it had not come that far, and has by now: the contexts are made of the file as it is.
        raise CertificateError("certificate_file", f"{section.certificate_file} was only half written")
    own = f"{begun}{own}{ended}\n"
    # Whoever shows a certificate to peers wants one of theirs too; here any will do, and nobody has to agree.
    anybody = made(section, lambda: contexts.for_clients(section.certificate_file, section.key_file))
    begins_at = ends_at = 0.0
    try:
        shown = contexts.shake_hands(anybody, contexts.reading(own, at_any_time=True), None).getpeercert() or {}
        begins_at, ends_at = (ssl.cert_time_to_seconds(str(shown[name])) for name in ("notBefore", "notAfter"))
        contexts.shake_hands(anybody, contexts.reading(own), None)
    except ssl.SSLCertVerificationError as error:
        message = f"{section.certificate_file} cannot be used: {error.verify_message}"
        if ends_at:
            message += f"; it is valid from {moment(begins_at)} to {moment(ends_at)}"
        raise CertificateError("certificate_file", message) from None
    except ssl.SSLError as error:
        raise CertificateError("certificate_file", f"{section.certificate_file} cannot be used: {error}") from None
    return Certified(listening, calling, begins_at, ends_at)


def meet_itself(section: PeerTlsSection, listening: ssl.SSLContext, calling: ssl.SSLContext, node: str) -> None:
    """Let the node call itself as its peers will. Raises ``CertificateError``."""
    name, message = "certificate_file", ""
    try:
        shown = contexts.shake_hands(listening, calling, node).getpeercert()
    except ssl.SSLCertVerificationError as error:
        message = error.verify_message
        if "revoked" in message or "CRL" in message:
            name = "crl_file"
        elif "issuer" in message or "self-signed" in message or "signature" in message:
            name, message = "ca_file", f"{section.ca_file} has not signed it: {message}"
    except ssl.SSLError as error:
        message = str(error)
    except ValueError:
        message = f'"{node}", the id of this node, is no name that a certificate can have'
    else:
        if node in names_of(shown):
            return
        message = f'no alternative name (SAN) of it is "{node}", the id of this node'
    raise CertificateError(name, f"{section.certificate_file} would be refused by peers: {message}") from None


def names_of(certificate: Any) -> frozenset[str]:
    """Return the alternative names in a certificate that a handshake has proved."""
    names = certificate.get("subjectAltName", ()) if certificate else ()
    return frozenset(name for kind, name in names if kind in ("DNS", "IP Address"))


def faults_of(config: NodeConfig) -> Iterator[str]:
    """Yield what is wrong with the certificates of a node: the entry of its file, and what would be right."""
    for place, read in readers(config).items():
        try:
            read()
        except CertificateError as error:
            yield f"{place}.tls.{error.key}: {error}"


def readers(config: NodeConfig) -> dict[str, Callable[[], Certified]]:
    """Return how the certificates of a node are read, by the section of its file."""
    found: dict[str, Callable[[], Certified]] = {}
    clients, peers = config.http.tls, config.internal.tls
    if clients is not None:
        found["http"] = lambda: for_clients(clients)
    if peers is not None:
        found["internal"] = lambda: for_peers(peers, config.node.id)
    return found


def files_of(section: TlsSection) -> tuple[Path, ...]:
    return tuple(value for _, value in section if isinstance(value, Path))


Stamps = tuple[tuple[int, ...] | None, ...]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return what changes when one of ``files`` is written anew or replaced. Blocks."""
    return tuple(map(stamp_of, files))


def stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def moment(at: float) -> str:
    """Return a time of a certificate as people read it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
