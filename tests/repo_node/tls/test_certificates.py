"""A node's certificates: what is right is used, what is wrong is named by the entry of the file that is at fault."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repo_node.config import ConfigError, TlsSection, load
from repo_node.keys import new_cluster_key
from repo_node.tls import certificates
from repo_node.tls.certificates import CertificateError, Certified, faults_of, for_clients, for_peers
from tests.certificates import CURVE, Authority, Pair, openssl

DAY_SECONDS = 86_400
ISSUED = Callable[[Authority], Pair]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class Node:
    """A directory with a node's file in it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "node.toml"
        key = directory / "cluster.key"
        key.touch(0o600)
        key.write_text(new_cluster_key())

    def write(self, http: str = "", internal: str = "", node: str = "node-1") -> None:
        self.file.write_text(
            f'[node]\nid = "{node}"\nzone = "a"\ncluster_key_file = "cluster.key"\n[database]\n'
            f'dsn = "postgresql://h@db/h"\n[http]\nlisten = "0.0.0.0:1"\n{http}\n[internal]\nlisten = "10.0.0.1:2"\n'
            f'{internal}\n[[shards]]\npath = "a"\n'
        )

    def for_peers(self, pair: Pair, authority: Authority, *, node: str = "node-1", crl: Path | None = None) -> None:
        self.write(internal=peers(pair, authority, crl), node=node)

    def check(self) -> list[str]:
        return list(faults_of(load(self.file)))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def clients(pair: Pair) -> str:
    return f'[http.tls]\ncertificate_file = "{pair.certificate}"\nkey_file = "{pair.key}"'


def peers(pair: Pair, authority: Authority, crl: Path | None = None) -> str:
    revoked = f'\ncrl_file = "{crl}"' if crl else ""
    return f'{clients(pair).replace("http", "internal")}\nca_file = "{authority.certificate}"{revoked}'


def ends_in_two_days(found: Certified) -> bool:
    return abs(found.ends_at - time.time() - 2 * DAY_SECONDS) < 600 and found.begins_at <= time.time()


def test_certificates_that_are_right_are_read_with_their_time(node: Node, authority: Authority) -> None:
    pair = authority.pair("node-1", "localhost")
    node.write(clients(pair), peers(pair, authority))
    assert node.check() == []
    config = load(node.file)
    assert config.http.tls and config.internal.tls
    assert ends_in_two_days(for_clients(config.http.tls))
    assert ends_in_two_days(for_peers(config.internal.tls, "node-1"))
    assert (config.http.url, config.internal.url) == ("https://0.0.0.0:1", "https://10.0.0.1:2")


def test_paths_of_certificates_are_relative_to_the_file(node: Node, authority: Authority, tmp_path: Path) -> None:
    pair = authority.pair("x")
    for name, source in (("c.pem", pair.certificate), ("k.pem", pair.key)):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(source.read_bytes())
    node.write('[http.tls]\ncertificate_file = "c.pem"\nkey_file = "k.pem"')
    assert node.check() == []


def test_a_node_without_tls_needs_no_certificate(node: Node) -> None:
    node.write()
    assert node.check() == []
    config = load(node.file)
    assert (config.http.url, config.internal.url) == ("http://0.0.0.0:1", "http://10.0.0.1:2")


@pytest.mark.parametrize(
    ("issue", "key", "why"),
    [
        (
            lambda ca: ca.pair("node-1", days=-1),
            "certificate_file",
            r"certificate has expired; it is valid from .* to ",
        ),
        (lambda ca: ca.pair("node-2"), "certificate_file", "not valid for 'node-1'"),
        (lambda ca: ca.pair(), "certificate_file", "not valid for 'node-1'"),
        (lambda ca: ca.pair("*"), "certificate_file", "not valid for 'node-1'"),
        (lambda ca: ca.pair("NODE-1"), "certificate_file", 'is "node-1", the id of this node'),
        (lambda ca: ca.pair("node-1", usage="serverAuth"), "certificate_file", "unsuitable certificate purpose"),
        (lambda ca: ca.pair("node-1", usage="clientAuth"), "certificate_file", "unsuitable certificate purpose"),
        (lambda ca: Pair(ca.pair("node-1").certificate, ca.pair("node-1").key), "key_file", "is not the key of"),
        (lambda ca: Pair(ca.directory / "absent", ca.key), "certificate_file", "there is no file .*/absent"),
        (lambda ca: Pair(ca.certificate, ca.directory / "absent"), "key_file", "there is no file .*/absent"),
        (lambda ca: Pair(ca.certificate, ca.directory), "key_file", "cannot be read: Is a directory"),
        (lambda ca: Pair(ca.key, ca.key), "certificate_file", 'no PEM file with "BEGIN CERTIFICATE'),
        (lambda ca: Pair(ca.certificate, ca.certificate), "key_file", 'no PEM file with "PRIVATE KEY'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_certificate_for_peers_is_named(
    node: Node, authority: Authority, issue: ISSUED, key: str, why: str
) -> None:
    node.for_peers(issue(authority), authority)
    (fault,) = node.check()
    assert fault.startswith(f"internal.tls.{key}: ")
    assert re.search(why, fault), fault


def test_a_certificate_of_another_authority_is_named(node: Node, authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "foreign")
    node.for_peers(foreign.pair("node-1"), authority)
    (fault,) = node.check()
    assert fault.startswith("internal.tls.ca_file: ") and "has not signed it" in fault


def test_s35_a_revoked_certificate_is_named_and_others_of_its_authority_are_not(node: Node, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "own")
    good, bad = authority.pair("node-1"), authority.pair("node-1")
    crl = authority.revocations(bad)
    node.for_peers(good, authority, crl=crl)
    assert node.check() == []
    node.for_peers(bad, authority, crl=crl)
    (fault,) = node.check()
    assert fault.startswith("internal.tls.crl_file: ") and "certificate revoked" in fault


@pytest.mark.parametrize(("mode", "open_to_others"), [(0o600, False), (0o400, False), (0o644, True), (0o604, True)])
def test_a_key_that_others_can_read_is_named(node: Node, authority: Authority, mode: int, open_to_others: bool) -> None:
    pair = authority.pair("node-1")
    node.write(clients(pair))
    pair.key.chmod(mode)
    assert [fault.startswith("http.tls.key_file: ") for fault in node.check()] == [True] * open_to_others
    if open_to_others:
        assert f"is open to others (mode {mode:04o}); run: chmod 600" in node.check()[0]


def test_a_key_with_a_passphrase_is_named_and_nobody_is_asked_for_it(
    node: Node, authority: Authority, tmp_path: Path
) -> None:
    pair, locked = authority.pair("node-1"), tmp_path / "locked.key"
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:canary-passphrase", "-out", locked)
    locked.chmod(0o600)
    node.write(clients(Pair(pair.certificate, locked)))
    (fault,) = node.check()
    assert fault == f"http.tls.key_file: {locked} has a passphrase, which nobody could type; remove it"


def test_every_fault_is_named_at_once_and_no_key_is_shown(node: Node, authority: Authority) -> None:
    pair = Pair(authority.pair("node-1", days=-1).certificate, authority.pair("node-1").key)
    node.write(clients(pair), peers(pair, authority))
    faults = node.check()
    assert [fault.split(":")[0] for fault in faults] == ["http.tls.key_file", "internal.tls.key_file"]
    secret = pair.key.read_text().splitlines()[1]
    assert not any(secret in fault for fault in faults)


def test_a_node_id_that_no_certificate_can_have_is_named(node: Node, authority: Authority) -> None:
    node.for_peers(authority.pair("a..b"), authority, node="a..b")
    (fault,) = node.check()
    assert "is no name that a certificate can have" in fault


def test_a_certificate_that_signed_itself_serves_clients(node: Node, tmp_path: Path) -> None:
    pair = Pair(tmp_path / "own.crt", tmp_path / "own.key")
    openssl("req", "-x509", *CURVE, "-keyout", pair.key, "-out", pair.certificate, "-days", "2", "-subj", "/CN=own")
    pair.key.chmod(0o600)
    node.write(clients(pair))
    assert node.check() == []


@pytest.mark.parametrize(
    ("internal", "complaint"),
    [
        ('advertise_url = "http://10.0.0.1:2"', "internal.advertise_url: must begin with https://"),
        ('[internal.tls]\nkey_file = "k"\nca_file = "c"', "internal.tls.certificate_file: is required and missing"),
        ('[internal.tls]\ncertificate_file = "c"\nkey_file = "k"', "internal.tls.ca_file: is required and missing"),
        ("[internal.tls]\nverify = false", "internal.tls.verify: is not a known key"),
    ],
)
def test_sections_that_cannot_work_are_refused(node: Node, authority: Authority, internal: str, complaint: str) -> None:
    whole = internal if "[" in internal else f"{internal}\n{peers(authority.pair('node-1'), authority)}"
    node.write(internal=whole)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(node.file)


def test_a_prepared_node_listens_as_before(node: Node, authority: Authority) -> None:
    node.write(
        internal=f'advertise_url = "http://10.0.0.1:2"\n{peers(authority.pair("node-1"), authority)}\nmode = "prepared"'
    )
    assert node.check() == []
    internal = load(node.file).internal
    assert not internal.listens_with_tls and internal.url == "http://10.0.0.1:2"


def test_a_fault_is_an_error_with_the_entry_at_fault(node: Node, authority: Authority) -> None:
    node.write(clients(Pair(authority.pair("x").certificate, authority.pair("x").key)))
    section = load(node.file).http.tls
    assert section is not None
    with pytest.raises(CertificateError) as caught:
        for_clients(section)
    assert caught.value.key == "key_file"


def test_a_certificate_that_is_written_while_it_is_read_is_a_fault_like_others(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.pair("node-1")
    whole, read_pair = pair.certificate.read_text(), certificates.read_pair

    def read_too_early(section: TlsSection) -> str:
        pair.certificate.write_text(whole[: len(whole) // 2])
        text = read_pair(section)
        pair.certificate.write_text(whole)
        return text

    monkeypatch.setattr(certificates, "read_pair", read_too_early)
    with pytest.raises(CertificateError, match="half written"):
        certificates.for_clients(TlsSection(certificate_file=pair.certificate, key_file=pair.key))
