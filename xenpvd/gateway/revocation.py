"""Lists of revoked certificates (CRLs; RFC 5280, section 5): whose they are, and when they count. OpenSSL
goes by them; that it refuses everybody, as a list is out of date or a CA has none, it tells nobody."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from xenpvd.errors import BadConfig

_PEM = re.compile(r"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]*)-----END X509 CRL-----")

# DER: the tags that tell what is there and what is left out
_INTEGER, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x02, 0x17, 0x18, 0xA0


class RevocationList(NamedTuple):
    """``issuer`` as DER. ``until`` None: until there is another one."""

    issuer: bytes
    since: datetime
    until: datetime | None


def load(path: Path) -> list[RevocationList]:
    """Those of a PEM file, one or more. Raises :class:`BadConfig`."""
    try:
        found = lists(path.read_text(encoding="utf-8", errors="replace"))
        why = "" if found else "there is no list (X509 CRL) in it"
    except OSError as fault:
        why = str(fault.strerror)
    except ValueError as fault:
        why = f"a list in it is damaged: {fault}"
    if why:
        raise BadConfig(f"cannot use tls.client_crl, {path}: {why}. Make it anew.", [("tls.client_crl", why)])
    return found


def lists(text: str) -> list[RevocationList]:
    """Those in a PEM text. Raises ValueError for one that is damaged."""
    return [_list(base64.b64decode(found[1])) for found in _PEM.finditer(text)]


def objections(
    authorities: Mapping[str, bytes], known: Iterable[RevocationList], now: datetime
) -> Iterator[tuple[str, str]]:
    """The names of those CAs (their certificates, DER) all of whose clients are refused, and why. One list
    that counts is enough for a CA, whatever others of it there are."""
    by_issuer: dict[bytes, list[RevocationList]] = {}
    for one in known:
        by_issuer.setdefault(one.issuer, []).append(one)
    for name, certificate in authorities.items():
        found = [_objection(one, now) for one in by_issuer.get(subject(certificate), ())]
        if all(found):
            yield name, " and ".join(found) or "there is no list of it"


def _objection(one: RevocationList, now: datetime) -> str:
    if one.until is not None and one.until <= now:
        return f"its list is out of date since {one.until:%Y-%m-%d %H:%M} UTC"
    if one.since > now:
        return f"its list does not count before {one.since:%Y-%m-%d %H:%M} UTC"
    return ""


def ends(known: Iterable[RevocationList], now: datetime) -> float | None:
    """Seconds until the first of them is out of date; None if that does not come."""
    ahead = [(one.until - now).total_seconds() for one in known if one.until is not None and one.until > now]
    return min(ahead, default=None)


def subject(certificate: bytes) -> bytes:
    """Of a certificate; both as DER. Raises ValueError."""
    _serial, _algorithm, _issuer, _validity, (_, _, whole) = _signed(certificate, _VERSION, 5)[:5]
    return whole


def _list(der: bytes) -> RevocationList:
    _algorithm, (_, _, issuer), since, *more = _signed(der, _INTEGER, 3)  # a list's version is an INTEGER
    until = next((_time(*part[:2]) for part in more[:1] if part[0] in (_UTC_TIME, _GENERALIZED_TIME)), None)
    return RevocationList(issuer, _time(*since[:2]), until)


def _signed(der: bytes, version: int, least: int) -> list[tuple[int, bytes, bytes]]:
    """The parts of what is signed, which is the first part of the whole; without its version, which may be
    left out."""
    try:
        ((_, content, _),) = _parts(der)
        parts = list(_parts(next(_parts(content))[1]))
    except (IndexError, StopIteration, ValueError):
        parts = []
    parts = parts[1:] if parts and parts[0][0] == version else parts
    if len(parts) < least:
        raise ValueError("it is cut off")
    return parts


def _parts(der: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(tag, content, all of it) of each."""
    at = 0
    while at < len(der):
        begin, tag, length = at, der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size], "big")
            at += size
        if (end := at + length) > len(der):
            raise IndexError
        yield tag, der[at:end], der[begin:end]
        at = end


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year, from 1950 on
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
