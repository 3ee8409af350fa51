"""The guests of this host, as their daemons' sockets lie in the runtime directory."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from xenpvd.access import Role
from xenpvd.client.errors import Unreachable
from xenpvd.client.wire import Wire
from xenpvd.config import LabelName, LabelValue
from xenpvd.errors import HostError, LimitReached, NotFound, PermissionRefused, XenpvdError
from xenpvd.figures import GuestStats
from xenpvd.paths import NAME
from xenpvd.rpc.metrics import exposition

log = logging.getLogger(__name__)

_STATS = TypeAdapter(GuestStats)
_LABELS = TypeAdapter(dict[LabelName, LabelValue])

#: Seconds that a daemon has to greet
GREETING = 5.0
#: Connections to one daemon; it takes 64, and its own host's users want some
PER_GUEST_MAX = 32
#: Seconds that a daemon has to tell of its guest for a list, and that a list is good for
LOOK, FRESH = 2.0, 1.0


class Guest(BaseModel):
    """One of a list. ``why`` instead of the rest: it does not answer."""

    name: str
    state: str | None = Field(None, max_length=32)
    vcpus: int | None = None
    memory_mib: int | None = None
    uptime: float | None = None
    drives: list[str] = Field([], max_length=64)
    why: str | None = None


class Guests:
    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._open: Counter[tuple[str, str]] = Counter()
        self._looking = asyncio.Lock()
        self._seen: list[Guest] = []
        self._seen_at = float("-inf")

    @property
    def connections(self) -> int:
        return self._open.total()

    @asynccontextmanager
    async def connect(self, name: str, role: Role) -> AsyncIterator[Wire]:
        """A connection to the daemon of ``name``: of viewers at its socket for looking.

        Raises :class:`NotFound`, :class:`LimitReached`, and what keeps it from being reached.
        """
        socket = "rpc-ro.sock" if role == "viewer" else "rpc.sock"
        if self._open[name, socket] >= PER_GUEST_MAX:
            why = f"cannot connect to {name}: {PER_GUEST_MAX} connections to it are open here. Close one."
            raise LimitReached(why, limit=PER_GUEST_MAX)
        self._open[name, socket] += 1
        try:
            async with self._wire(name, socket, GREETING) as wire:
                yield wire
        finally:
            self._open[name, socket] -= 1
            self._open += Counter()  # forgets zeroes

    async def look(self) -> list[Guest]:
        """Those that answer and those that do not, in time. However many ask at once, each daemon is asked
        once. Raises :class:`HostError` if the runtime directory cannot be read."""
        async with self._looking:
            if time.monotonic() - self._seen_at > FRESH:
                found = await asyncio.gather(*(self._look(name) for name in self._names()))
                self._seen = [guest for guest in found if guest is not None]
                self._seen_at = time.monotonic()
            return self._seen

    async def stats(self, names: Iterable[str]) -> list[GuestStats]:
        """What is counted of them, of those that tell it in time."""
        async with self._looking:
            found = await asyncio.gather(*(self._stats(name) for name in names))
        return [stats for stats in found if stats is not None]

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.run_dir) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except FileNotFoundError:  # no guest has been started yet
            return []
        except OSError as fault:
            why = f"cannot look for guests in {self.run_dir}: {fault.strerror}. Check run_dir and its mode."
            raise HostError(why, fault.errno or 0, str(self.run_dir)) from None

    async def _look(self, name: str) -> Guest | None:
        try:
            async with asyncio.timeout(LOOK), self._wire(name, "rpc-ro.sock", LOOK) as wire:
                told = await wire.ask("guest.status", {})
                drives = [drive["vdev"] for drive in await wire.ask("drive.list", {})]
                return Guest.model_validate({**told, "name": name, "drives": drives, "why": None})
        except NotFound:
            return None
        except TimeoutError:
            return Guest(name=name, why=f"it does not answer within {LOOK:g} s")
        except (ValidationError, LookupError, TypeError):
            return Guest(name=name, why="it does not answer as xenpvd does")
        except XenpvdError as fault:
            return Guest(name=name, why=str(fault))

    async def _stats(self, name: str) -> GuestStats | None:
        try:
            async with asyncio.timeout(LOOK), self._wire(name, "rpc-ro.sock", LOOK) as wire:
                told = _STATS.validate_python(await wire.ask("guest.stats", {}))
                stats = replace(told, name=name, labels=_LABELS.validate_python(told.labels))
                exposition(stats)  # what cannot be written must not spoil that of the others
                return stats
        except (XenpvdError, TimeoutError, ValueError) as fault:
            log.debug("%s tells no figures: %s", name, fault)
            return None

    @asynccontextmanager
    async def _wire(self, name: str, socket: str, timeout: float) -> AsyncIterator[Wire]:
        if not NAME.fullmatch(name):
            raise NotFound(f"no guest can be called {name[:64]!r}.", "guest", name[:64])
        path = self.run_dir / name / socket
        # The folder is its daemon's. One that is hostile may put a link there, to a socket that is for us
        # and not for it: so what is opened must be a socket, and is what is connected to.
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as fault:
            _unreachable(fault, name, path)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise Unreachable(f"cannot reach {name}: {path} is no socket. Start its guest anew.")
            wire = await Wire.open(path, timeout, Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
        try:
            yield wire
        finally:
            await wire.close()


def _unreachable(fault: OSError, name: str, path: Path) -> NoReturn:
    match fault:
        case FileNotFoundError() | NotADirectoryError():
            raise NotFound(f"there is no guest {name} here. Start it.", "guest", name) from None
        case PermissionError():
            why = f"cannot reach {name}: no permission for {path}. Let the gateway's user join its group."
            raise PermissionRefused(why) from None
    raise Unreachable(f"cannot reach {name}: {fault.strerror or fault}. Try again.") from None
