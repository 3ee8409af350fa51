"""Certificates and lists of revoked ones, as openssl(1) makes them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="there is no openssl: apt install openssl")


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def make_certificates(place: Path) -> None:
    """Two CAs, ours and another; of ours a host and two clients, of the other one an alice of its own.
    mallory's certificate is a CA's, too, as by openssl's simplest recipe. Python 3.13 takes them as well."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for ca in ("ours", "other"):
        files = ("-keyout", f"{place}/{ca}.key", "-out", f"{place}/{ca}.crt")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl("req", "-x509", *new, "-subj", f"/CN={ca} CA", *files, *usage)
    for ca, name, subject in (
        ("ours", "host", "localhost"),
        ("ours", "alice", "alice"),
        ("ours", "mallory", "mallory"),
        ("other", "false-alice", "alice"),
        ("mallory", "mallorys-alice", "alice"),
    ):
        signed = ("-CA", f"{place}/{ca}.crt", "-CAkey", f"{place}/{ca}.key")
        files = ("-keyout", f"{place}/{name}.key", "-out", f"{place}/{name}.crt")
        names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        mark = (
            "keyUsage=critical,digitalSignature,keyCertSign"
            if name == "mallory"
            else "basicConstraints=critical,CA:FALSE"
        )
        openssl("req", "-x509", *new, "-subj", f"/CN={subject}", *signed, *files, *names, "-addext", mark)
    with (place / "mallorys-alice.crt").open("a") as chain:
        chain.write((place / "mallory.crt").read_text())


def crl(
    place: Path, ca: str, *revoked: str, until: str = "20991231235959Z", since: str = "20250101000000Z"
) -> str:
    """A CA's list (PEM)."""
    (place / f"{ca}.index").write_text("")
    config = place / f"{ca}.cnf"
    config.write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {place}/{ca}.index\ncertificate = {place}/{ca}.crt\n"
        f"private_key = {place}/{ca}.key\ndefault_md = sha256\n"
    )
    for name in revoked:
        openssl("ca", "-config", f"{config}", "-revoke", f"{place}/{name}.crt")
    times = ("-crl_lastupdate", since, "-crl_nextupdate", until)
    openssl("ca", "-config", f"{config}", "-gencrl", *times, "-out", f"{place}/{ca}.crl")
    return (place / f"{ca}.crl").read_text()


def client(certificates: Path, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ours.crt"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
    return context
