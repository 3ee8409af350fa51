"""Lists of revoked certificates as OpenSSL writes them, and such as nobody should."""

from __future__ import annotations

import base64
import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.openssl import crl, needs_openssl
from xenpvd.errors import BadConfig
from xenpvd.gateway import revocation
from xenpvd.gateway.revocation import RevocationList

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def authority(certificates: Path, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((certificates / f"{name}.crt").read_text())


@needs_openssl
def test_whose_it_is_and_when_it_counts(certificates: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.crl"
    both.write_text("text before\n" + crl(certificates, "ours", "mallory") + crl(certificates, "other"))
    ours, other = revocation.load(both)
    assert ours.issuer == revocation.subject(authority(certificates, "ours")) and b"ours CA" in ours.issuer
    assert other.issuer == revocation.subject(authority(certificates, "other"))
    assert ours.since == datetime(2025, 1, 1, tzinfo=UTC)
    assert ours.until == datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)


@needs_openssl
def test_what_keeps_all_of_a_ca_out(certificates: Path) -> None:
    def told(*authorities: str, more: str = "", **times: str) -> list[tuple[str, str]]:
        known = revocation.lists(crl(certificates, "ours", **times) + more)
        those = {name: authority(certificates, name) for name in authorities}
        return list(revocation.objections(those, known, NOW))

    good, old = crl(certificates, "ours"), {"until": "20260131120000Z"}
    since = "its list is out of date since 2026-01-31 12:00 UTC"
    assert told("ours") == []
    assert told("ours", "other") == [("other", "there is no list of it")]
    assert told("ours", **old) == [("ours", since)]
    assert told("ours", since="20260701000000Z") == [
        ("ours", "its list does not count before 2026-07-01 00:00 UTC")
    ]
    assert told("ours", more=good, **old) == [], "one that counts is enough"
    later = crl(certificates, "ours", until="20260201120000Z")
    assert told("ours", more=later, **old) == [("ours", f"{since} and {since.replace('01-31', '02-01')}")]
    assert told("other", **old) == [("other", "there is no list of it")], "whose list it is does not come"


def test_when_the_first_one_ends() -> None:
    def until(*args: int) -> RevocationList:
        return RevocationList(b"", NOW, datetime(*args, tzinfo=UTC))  # type: ignore[misc,arg-type]

    lists = [RevocationList(b"", NOW, None), until(2026, 5, 31), until(2026, 6, 3), until(2026, 6, 2)]
    assert revocation.ends(lists, NOW) == 86400
    assert revocation.ends(lists[:2], NOW) is None


def pem(der: bytes) -> str:
    return f"-----BEGIN X509 CRL-----\n{base64.b64encode(der).decode()}\n-----END X509 CRL-----\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no list (X509 CRL) in it"),
        ("-----BEGIN CERTIFICATE-----\n", "there is no list"),
        (pem(b""), "a list in it is damaged: it is cut off"),
        (pem(b"\x30\x02\x30\x05"), "a list in it is damaged: it is cut off"),
        (pem(b"\x30\x06\x30\x04\x02\x00\x02\x00"), "a list in it is damaged"),
        ("-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----", "a list in it is damaged"),
        (None, "No such file or directory"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "a.crl").write_text(text)
    with pytest.raises(BadConfig) as caught:
        revocation.load(tmp_path / "a.crl")
    assert str(caught.value).startswith(f"cannot use tls.client_crl, {tmp_path}/a.crl: {why}")


@given(st.binary(max_size=64))
def test_garbage_is_a_fault_of_the_file(der: bytes) -> None:
    for read in (lambda: revocation.lists(pem(der)), lambda: revocation.subject(der)):
        with contextlib.suppress(ValueError):
            read()


@given(st.integers(0, 200), st.data())
def test_one_that_is_cut_off_or_bent(cut: int, data: st.DataObject) -> None:
    time = b"\x17\x0d260601000000Z"
    inner = b"\x02\x01\x01\x30\x00\x30\x00" + time + b"\x18\x0f20990601000000Z"
    whole = b"\x30" + bytes([2 + len(inner)]) + b"\x30" + bytes([len(inner)]) + inner
    (found,) = revocation.lists(pem(whole))
    assert found == RevocationList(b"\x30\x00", NOW, datetime(2099, 6, 1, tzinfo=UTC))
    bent = bytearray(whole)
    bent[cut % len(whole)] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        revocation.lists(pem(bytes(bent[: max(cut, 1)])))
