"""An authority and the certificates it signs, made with openssl as README.md tells people to."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tools import require_tool

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def replace(self, other: Pair) -> None:
        """Become ``other``, one file after the other, as people do it."""
        for mine, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            fresh = mine.with_suffix(".new")
            fresh.touch(0o600)
            fresh.write_bytes(theirs.read_bytes())
            fresh.replace(mine)


class Authority:
    """Signs certificates, whose files lie in its directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        require_tool("openssl", "it makes the certificates")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.certificate, self.key = directory / f"{name}.crt", directory / f"{name}.key"
        self._made = 0
        extensions = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl(
            *("req", "-x509", *CURVE, "-keyout", self.key, "-out", self.certificate, "-days", "2"),
            *("-subj", f"/CN=Holdfast {name}", *extensions),
        )

    def pair(self, *names: str, days: int = 2, usage: str = "serverAuth,clientAuth") -> Pair:
        """Sign a certificate for DNS ``names``, or addresses written ``IP:...``."""
        self._made += 1
        made = Pair(self.directory / f"{self._made}.crt", self.directory / f"{self._made}.key")
        request, extensions = self.directory / f"{self._made}.csr", self.directory / f"{self._made}.ext"
        openssl("req", *CURVE, "-keyout", made.key, "-out", request, "-subj", f"/CN={names[0] if names else 'nobody'}")
        alternatives = ",".join(name if ":" in name else f"DNS:{name}" for name in names)
        extensions.write_text(
            f"extendedKeyUsage={usage}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
            + (f"subjectAltName={alternatives}\n" if names else "")
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial"),
            *("-days", str(days), "-out", made.certificate, "-extfile", extensions),
        )
        made.key.chmod(0o600)
        return made

    def revocations(self, *revoked: Pair) -> Path:
        """Return a list of the certificates that hold no more."""
        index, config, made = (self.directory / name for name in ("index.txt", "ca.cnf", "ca.crl"))
        index.touch()
        config.write_text(
            f"[ca]\ndefault_ca = this\n[this]\ndatabase = {index}\ndefault_md = sha256\ndefault_crl_days = 2\n"
        )
        signing = ("ca", "-config", config, "-keyfile", self.key, "-cert", self.certificate)
        for pair in revoked:
            openssl(*signing, "-revoke", pair.certificate)
        openssl(*signing, "-gencrl", "-out", made)
        return made


def openssl(*arguments: str | Path) -> None:
    run(["openssl", *map(str, arguments)])


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
