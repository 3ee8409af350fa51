"""A further console, with the real store and what Linux' hvc_xen writes there."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.console_frontend import ConsoleFrontend
from tests.fakes.evtchn import FakeEvtchnOps
from tests.fakes.gnttab import FakeGnttab
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends.console.backend import Console
from xenpvd.backends.console.device import ConsoleDevice
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.errors import KvmError, StateError, TimedOut, XenpvdError

FRONTEND = "/local/domain/1/device/console/2"
BACKEND = "/local/domain/0/backend/console/1/2"


class Rig:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.store = Xenstore(lambda name, /, **data: None)
        self.client = self.store.client
        self.client.mkdir("/local/domain/1/device")
        self.client.set_perms("/local/domain/1/device", ["n0", "r1"])
        self.evtchn, self.gnttab = FakeEvtchnOps(), FakeGnttab()
        self.console = Console(
            lambda name, /, **data: self.events.append((name, data)), 1 << 16, "agent", number=2
        )
        self.guest = ConsoleFrontend()
        self.device = self.make()

    def make(self) -> ConsoleDevice:
        device = ConsoleDevice(
            self.console,
            2,
            domid=1,
            xenstore=self.client,
            evtchn=self.evtchn,
            gnttab=self.gnttab,
        )
        device.start()
        return device

    async def connect(self, **nodes: int) -> None:
        """As xencons_probe(): ring-ref and port, then Initialised; Connected when the other end is."""
        self.guest = ConsoleFrontend()
        port = self.evtchn.alloc_unbound()
        for name, value in {"ring-ref": self.gnttab.grant(self.guest.page), "port": port, **nodes}.items():
            self.client.write(f"{FRONTEND}/{name}", f"{value}")
        self.switch(S.Initialised)
        await self.until(S.Connected, S.Closing)
        if port in self.evtchn.ports:
            self.guest.port = self.evtchn.ports[port]
        if self.device.error is None:
            self.switch(S.Connected)
            await self.device.wait_connected(5)

    def switch(self, state: S) -> None:
        self.client.write(f"{FRONTEND}/state", f"{state:d}")

    async def until(self, *states: S) -> None:
        watch = self.client.watch(f"{BACKEND}/state")
        try:
            async with asyncio.timeout(5):
                async for _ in watch:
                    if S(int(self.client.read(f"{BACKEND}/state"))) in states:
                        return
        finally:
            watch.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.device.disconnect()
    assert not rig.gnttab.mapped
    assert all(port.closed for port in rig.evtchn.ports.values())
    rig.evtchn.close()


async def test_the_guest_finds_its_name_and_both_ends_talk(rig: Rig) -> None:
    assert rig.client.read(f"{FRONTEND}/name") == b"agent"
    assert rig.client.read(f"{FRONTEND}/backend").decode() == BACKEND
    await rig.connect()
    rig.guest.prints(b"hello from hvc1")
    assert await rig.console.history.wait(0)
    assert rig.console.history.read(0, 99) == (0, b"hello from hvc1")
    await rig.console.type(b"hello", 5)
    assert rig.guest.reads() == b"hello"
    assert rig.console.info().connected


async def test_the_recording_outlives_the_device_and_a_boot_is_marked(rig: Rig) -> None:
    await rig.connect()
    rig.guest.put(b"last words")  # no kick: the VM stopped before
    await rig.device.disconnect()
    with pytest.raises(StateError, match="the guest has not taken up console agent"):
        await rig.console.type(b"?", 1)
    assert rig.console.history.read(0, 99) == (0, b"last words")
    assert not rig.console.info().connected
    rig.device = rig.make()
    await rig.connect()
    rig.guest.prints(b"again")
    assert await rig.console.history.wait(10)
    assert rig.console.marks == {0: 1, 10: 2}


async def test_the_guest_closes_it_and_opens_it_again(rig: Rig) -> None:
    """M9."""
    await rig.connect()
    rig.guest.put(b"bye")
    rig.switch(S.Closed)
    await rig.until(S.Closed)
    assert rig.console.history.read(0, 99) == (0, b"bye") and not rig.gnttab.mapped
    rig.switch(S.Initialising)
    await rig.until(S.InitWait)
    await rig.connect()
    assert rig.console.info().connected


@pytest.mark.parametrize(
    ("nodes", "why"),
    [({"ring-ref": 4000}, "ring-ref 4000 cannot be mapped"), ({"port": 999}, "port 999 cannot be bound")],
)
async def test_what_cannot_be_connected_ends_the_device_with_a_word_why(
    rig: Rig, nodes: dict[str, int], why: str
) -> None:
    await rig.connect(**nodes)
    assert rig.device.error is not None and why in rig.device.error
    assert why.encode() in rig.client.read(f"{BACKEND}/error")
    with pytest.raises(XenpvdError, match="console agent did not connect"):
        await rig.device.wait_connected(5)


async def test_a_host_without_descriptors_ends_the_device_and_not_the_guest(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(port: int) -> None:
        raise KvmError("cannot bind: Too many open files", "KVM_IRQFD", errno.EMFILE)

    monkeypatch.setattr(rig.evtchn, "bind_interdomain", no_more)
    await rig.connect()
    assert rig.device.error is not None and "Too many open files" in rig.device.error
    assert not rig.gnttab.mapped


async def test_a_guest_that_does_not_let_go_keeps_it(rig: Rig) -> None:
    await rig.connect()
    with pytest.raises(TimedOut, match="still uses console agent"):
        await rig.device.remove(force=False, timeout=0.05)
    rig.guest.prints(b"still here")
    assert await rig.console.history.wait(0)
    await rig.device.remove(force=True, timeout=1)
    assert not rig.store.exists(FRONTEND) and not rig.store.exists(BACKEND)


async def test_what_the_host_has_no_more_of_leaves_nothing_mapped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(port: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(rig.evtchn, "bind_interdomain", short)
    await rig.connect()
    assert rig.device.error == "the host has not enough for it: Too many open files"
    assert not rig.gnttab.mapped
