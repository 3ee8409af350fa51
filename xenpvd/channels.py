"""The guest's further consoles over all its lives: which there are, and adding and removing while it runs.

Xen calls them channels (docs/misc/channel.txt): a console of a name, for an agent or a second terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from xenpvd.backends.console.backend import Console
from xenpvd.backends.console.device import DEVIDS
from xenpvd.config import ChannelConfig
from xenpvd.consoles import Consoles
from xenpvd.domain import Domain
from xenpvd.errors import BadConfig, Exists, NotFound, StateError, TimedOut, XenpvdError
from xenpvd.events import Publish
from xenpvd.views import ChannelAdded


@dataclass(frozen=True, slots=True)
class _Channel:
    config: ChannelConfig
    devid: int
    console: Console


class Channels:
    """Loop thread only.

    What a life's end overtakes: a remove is done before the next life begins; what was added stays for it.
    Events: ``console.added`` {console, number}, ``console.removed`` {console, forced}.
    """

    def __init__(self, consoles: Consoles, publish: Publish) -> None:
        self._consoles = consoles
        self._publish = publish
        self._all: dict[str, _Channel] = {}
        self._changing = asyncio.Lock()

    @property
    def devices(self) -> Mapping[int, Console]:
        """What every life is offered, by its number."""
        return {channel.devid: channel.console for channel in self._all.values()}

    async def configure(self, channels: tuple[ChannelConfig, ...]) -> None:
        """As a definition has them, while there is no life; the recording of one that it has still goes on.

        Raises :class:`HostError` for a log that cannot be written.
        """
        wanted = {channel.name: channel for channel in channels}
        for name, channel in list(self._all.items()):
            if channel.config != wanted.get(name):
                await self._drop(name)
        for config in sorted(channels, key=lambda channel: channel.number is None):  # those choose first
            if config.name not in self._all:
                await self._put(config)

    async def add(self, domain: Domain, config: ChannelConfig, wait: bool, timeout: float) -> ChannelAdded:
        """Offer one to the running guest; with ``wait`` this returns once the guest uses it, or raises why it
        does not, and nothing of it is left. The very same one again changes nothing.

        Raises :class:`Exists`, :class:`BadConfig`, :class:`HostError`, :class:`TimedOut`, and
        :class:`StateError` if the guest ends meanwhile; what was offered stays for its next life.
        """
        name = config.name
        async with self._changing:
            there = self._all.get(name)
            if there is not None and there.config != config:
                raise Exists(
                    f"cannot add channel {name}: there is another one. Remove it first.",
                    kind="console",
                    name=name,
                )
            domain.check_lives(f"add channel {name}")
            if there is None:
                channel = await self._put(config, partial(domain.check_lives, f"add channel {name}"))
                domain.add_channel(channel.devid, channel.console)
                self._publish("console.added", console=name, number=channel.devid)
        device = domain.channels[name]
        if wait:
            try:
                await device.wait_connected(timeout)
            except XenpvdError as fault:
                if there is not None or domain.channels.get(name) is not device:
                    raise
                if domain.ending:
                    raise StateError(
                        f"the guest ended before it took up channel {name}; its next life is offered it.",
                        "stopped",
                        ["running"],
                    ) from None
                await self.remove(domain, name, force=True, missing_ok=True, timeout=timeout)
                if isinstance(fault, TimedOut):
                    raise TimedOut(
                        f"the guest did not take up channel {name} in {timeout:g} s; it was removed again. "
                        "Is the guest booted, with a driver for consoles (hvc_xen)? Try a longer timeout."
                    ) from None
                raise
        return ChannelAdded(self._consoles.info(name), there is None)

    async def remove(
        self, domain: Domain | None, name: str, *, force: bool, missing_ok: bool, timeout: float
    ) -> bool:
        """Take one from the guest; its recording ends. False if there was none and ``missing_ok``.

        Raises :class:`NotFound`, :class:`TimedOut` if the guest does not let go (it stays then),
        :class:`StateError` if this life ends, and :class:`Busy` if the guest is being asked already.
        """
        channel = self._all.get(name)
        if domain is None or channel is None or name not in domain.channels:
            if missing_ok:
                return False
            raise NotFound(f"cannot remove channel {name}: there is none. See console.list.", "console", name)
        device = domain.channels[name]
        with domain.held(f"remove channel {name}"):
            await device.remove(force=force, timeout=timeout)
            if domain.channels.get(name) is device:  # else another call has done it
                del domain.channels[name]
                await self._drop(name)
                self._publish("console.removed", console=name, forced=force)
        return True

    async def _put(self, config: ChannelConfig, check: Callable[[], None] = lambda: None) -> _Channel:
        """``check`` is asked once the log is open, which may have taken its time."""
        self._number(config)  # before a file is made for it
        console = Console(self._publish, config.history, config.name, input=config.input)
        logfile = await self._consoles.open_log(console, config.log)
        try:
            check()
            console.number = devid = self._number(config)
            self._consoles.put(console, logfile)
        except BaseException:
            if logfile is not None:
                await logfile.close()
            raise
        channel = self._all[config.name] = _Channel(config, devid, console)
        return channel

    def _number(self, config: ChannelConfig) -> int:
        """The one that is asked for, or a free one. Raises :class:`BadConfig`."""
        taken = self.devices
        devid = config.number or next((number for number in DEVIDS if number not in taken), None)
        if devid is None or devid in taken:
            why = f"number {devid} is taken" if devid else f"there are {len(taken)}, as many as there may be"
            raise BadConfig(f"cannot add channel {config.name}: {why}. Remove one, or choose another number.")
        return devid

    async def _drop(self, name: str) -> None:
        del self._all[name]
        await self._consoles.drop(name)
