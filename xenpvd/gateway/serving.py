"""The gateway as gateway.toml says, and as it says later: the files are read, listened at, and read anew."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xenpvd import logs
from xenpvd.errors import XenpvdError
from xenpvd.gateway import config, listen, revocation
from xenpvd.gateway.access import Certificates, Tokens
from xenpvd.gateway.config import GatewayConfig
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.revocation import RevocationList
from xenpvd.gateway.server import Gateway

log = logging.getLogger(__name__)

CURE = "Make a newer one, then reload."


@dataclass(frozen=True, slots=True)
class Settings:
    """What gateway.toml and the files that it names say at one time."""

    config: GatewayConfig
    tokens: Tokens
    tls: ssl.SSLContext | None
    certificates: Certificates
    revoked: list[RevocationList]

    @classmethod
    def read(cls, file: Path) -> Settings:
        """Raises :class:`HostError` if one cannot be read, :class:`BadConfig` if it cannot be used."""
        found, folder = config.load(file), file.absolute().parent
        tokens = Tokens.load(folder / found.tokens) if found.tokens is not None else Tokens()
        tls, revoked = None, list[RevocationList]()
        if found.tls is not None:
            if found.tls.client_crl is not None:
                revoked = revocation.load(folder / found.tls.client_crl)
            tls = listen.context(found.tls, folder, found.tokens is not None)
        authorities = [] if tls is None else [one["subject"] for one in tls.get_ca_certs()]
        return cls(found, tokens, tls, Certificates(found.client, authorities), revoked)

    def warn(self) -> None:
        """Of what keeps all out who come with a certificate."""
        if self.tls is not None and self.config.tls is not None and self.revoked:
            told = (_name(ca["subject"]) for ca in self.tls.get_ca_certs())
            authorities = dict(zip(told, self.tls.get_ca_certs(binary_form=True), strict=True))
            for ca, why in revocation.objections(authorities, self.revoked, datetime.now(UTC)):
                where = f"tls.client_crl, {self.config.tls.client_crl}"
                log.error("nobody of %s comes in by certificate: %s: %s. %s", ca, where, why, CURE)


class Serving:
    """``given`` are the supervisor's sockets, by their names; without any, those of gateway.toml count."""

    def __init__(self, file: Path, run_dir: Path) -> None:
        self._file = file
        self._run_dir = run_dir
        self._gateway = Gateway(Guests(run_dir), Tokens())
        self._given = listen.inherited()
        self._places: dict[str, socket.socket] = dict(self._given)
        self._told: frozenset[str] | None = None  # of _places, what the log has
        self._warning: asyncio.TimerHandle | None = None
        self._taking = asyncio.Lock()

    async def take(self, settings: Settings) -> None:
        """Serve as they say from now on; connections that are open live on. Raises :class:`BadConfig` and
        :class:`HostError`; nothing has changed then."""
        async with self._taking:
            await self._take(settings)

    async def _take(self, settings: Settings) -> None:
        wanted = self._given.keys() or settings.config.listen
        places, new = dict[str, socket.socket](), dict[str, socket.socket]()
        try:
            for where in wanted:
                if where not in self._places:
                    new[where] = listen.bind(where)
                places[where] = new.get(where) or self._places[where]
                listen.check(where, places[where], settings.tls is not None)
            await self._gateway.start([place.dup() for place in places.values()], settings.tls)
        except BaseException:
            _forget(new)
            raise
        gone = {where: place for where, place in self._places.items() if where not in places}
        self._places = places
        _forget(gone)
        self._gateway.admit(settings.tokens, settings.certificates, settings.config.names)
        logs.set_level("", settings.config.log_level)
        self._watch(settings)
        if self._told != self._places.keys():
            self._told = frozenset(self._places)
            log.info("the guests of %s are at %s", self._run_dir, ", ".join(self._places))

    async def reload(self) -> None:
        """Read the files anew. What is wrong with them is logged, and changes nothing."""
        try:
            await self.take(Settings.read(self._file))
        except (XenpvdError, OSError) as fault:
            log.error("nothing is reloaded, all is as before: %s", fault)
        else:
            log.info("reloaded")

    async def stop(self) -> None:
        if self._warning is not None:
            self._warning.cancel()
        await self._gateway.stop()
        for place in self._places.values():
            place.close()
        if not self._given:
            _forget(self._places)

    def _watch(self, settings: Settings) -> None:
        """A list of revoked certificates may run out while it is in use."""
        if self._warning is not None:
            self._warning.cancel()
        settings.warn()
        if (seconds := revocation.ends(settings.revoked, datetime.now(UTC))) is not None:
            loop = asyncio.get_running_loop()
            self._warning = loop.call_later(seconds, self._watch, settings)


def _name(subject: Any) -> str:
    """Of a certificate's subject, as ``get_ca_certs()`` has it: ``organizationName=X, commonName=Y``."""
    return ", ".join(f"{key}={value}" for part in subject for key, value in part)


def _forget(places: dict[str, socket.socket]) -> None:
    """Those that we have made."""
    for where, place in places.items():
        place.close()
        if where.startswith("/"):
            Path(where).unlink(missing_ok=True)
