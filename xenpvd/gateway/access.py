"""Who calls, and what they may: by a token, a certificate, or a ticket that one of these got."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from xenpvd.access import ROLES, Role
from xenpvd.errors import BadConfig, HostError, LimitReached
from xenpvd.gateway.config import PATTERN, ClientConfig

#: Seconds that a ticket is good for
TICKET_TIME = 30.0
#: Tickets of one caller that are not used yet
TICKETS_MAX = 64

_LINE = re.compile(rf"([0-9a-f]{{64}})\s+({'|'.join(ROLES)})(?:\s+({PATTERN}))?")


@dataclass(frozen=True, slots=True)
class Caller:
    """``who`` is for the log; ``guests`` is a pattern."""

    who: str
    role: Role
    guests: str = "*"

    def sees(self, guest: str) -> bool:
        return fnmatchcase(guest, self.guests)


class Tokens:
    """By their SHA-256: what the file has lets nobody in."""

    def __init__(self, lines: Iterable[str] = (), source: str = "tokens") -> None:
        """Raises :class:`BadConfig`."""
        self._known: list[tuple[str, Caller]] = []
        for number, line in enumerate(lines, 1):
            line = line.partition("#")[0].strip()
            if not line:
                continue
            if (found := _LINE.fullmatch(line)) is None:
                why = f"line {number} is not SHA256 {'|'.join(ROLES)} [GUESTS]"
                raise BadConfig(f"cannot use {source}: {why}. Mend it.", [(source, why)])
            digest, role, guests = found.groups(default="*")
            self._known.append((digest, Caller(f"token {digest[:8]}", cast(Role, role), guests)))

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Raises :class:`HostError`, and :class:`BadConfig` for a file that others can read."""
        try:
            with path.open(encoding="ascii") as file:
                if os.fstat(file.fileno()).st_mode & 0o007:
                    why = "everybody can use the file"
                    raise BadConfig(f"cannot use {path}: {why}. Run: chmod o= {path}", [("tokens", why)])
                return cls(file, str(path))
        except OSError as fault:
            why = f"cannot read {path}: {fault.strerror}. Check tokens in gateway.toml."
            raise HostError(why, fault.errno or 0, str(path)) from None
        except UnicodeDecodeError:
            raise BadConfig(f"cannot use {path}: it is no text.", [("tokens", "no text")]) from None

    def find(self, token: str) -> Caller | None:
        """Takes the same time for each that is wrong."""
        digest, found = sha256(token.encode("utf-8", "replace")).hexdigest(), None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


class Certificates:
    """Those that TLS has found to be of our CA; their subjects have names. ``authorities`` are subjects of
    that CA's certificates: what one of its clients has signed is not of the CA, though TLS may say so."""

    def __init__(
        self, clients: Iterable[ClientConfig] = (), authorities: Iterable[Any] | None = None
    ) -> None:
        self._authorities = None if authorities is None else list(authorities)
        self._known = {
            client.name: Caller(f"client {client.name}", client.role, client.guests) for client in clients
        }

    def find(self, certificate: dict[str, Any] | None) -> Caller | None:
        """``certificate`` as ``getpeercert()`` has it. Of a subject with two names nobody knows which one
        counts."""
        certificate = certificate or {}
        if self._authorities is not None and certificate.get("issuer") not in self._authorities:
            return None
        subject = certificate.get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        return self._known.get(names[0]) if len(names) == 1 else None


class Tickets:
    """For a browser's WebSocket, which can send no token: good once, and not for long, so that it does no
    harm in a history or a log."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._issued: dict[str, tuple[Caller, float]] = {}

    def issue(self, caller: Caller) -> str:
        """Raises :class:`LimitReached`."""
        now = self._now()
        self._issued = {key: kept for key, kept in self._issued.items() if kept[1] > now}
        if sum(owner == caller for owner, _ in self._issued.values()) >= TICKETS_MAX:
            raise LimitReached(f"cannot give another ticket: {TICKETS_MAX} are not used yet. Wait.")
        ticket = secrets.token_urlsafe(32)
        self._issued[sha256(ticket.encode()).hexdigest()] = caller, now + TICKET_TIME
        return ticket

    def redeem(self, ticket: str) -> Caller | None:
        caller, until = self._issued.pop(sha256(ticket.encode()).hexdigest(), (None, 0.0))
        return caller if until > self._now() else None
