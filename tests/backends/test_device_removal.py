"""The end of a device: asked for, forced, too late, or while its storage hangs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.device import BACKEND, FRONTEND, DeviceRig
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends import device
from xenpvd.errors import Busy, TimedOut, XenpvdError


async def removed(rig: DeviceRig, guest: Any = None, **how: Any) -> None:
    async with asyncio.TaskGroup() as group:
        if guest is not None:
            group.create_task(guest)
        await rig.device.remove(**{"force": False, "timeout": 5, **how})
    assert not rig.store.exists(FRONTEND) and not rig.store.exists(BACKEND)
    assert rig.store.exists("/local/domain/1/device")
    assert not rig.driver.connected


@pytest.mark.parametrize("answers", [[S.Closed], [S.Closing, S.Closed]])
async def test_remove(rig: DeviceRig, answers: list[S]) -> None:
    await rig.guest(S.Initialised, S.Connected)

    async def guest() -> None:
        await rig.until(lambda: rig.device.state is S.Closing)
        assert rig.nodes(BACKEND)["online"] == "0"
        assert rig.driver.connected  # it may still write back what it has
        for state in answers:
            rig.write(state)
            await rig.settle()

    await removed(rig, guest())
    assert rig.driver.calls == ["connect", "disconnect"]
    assert (rig.device.state, rig.device.frontend_state) == (S.Closed, S.Unknown)


@pytest.mark.parametrize("states", [[], [S.Initialised, S.Closed], ["0"]])
async def test_remove_what_nobody_uses_asks_nobody(rig: DeviceRig, states: list[S]) -> None:
    if states:
        await rig.guest(*states)
    await removed(rig, timeout=0)


async def test_remove_once_the_frontend_is_gone(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)

    async def guest() -> None:
        await rig.until(lambda: rig.device.state is S.Closing)
        rig.client.remove(FRONTEND)

    await removed(rig, guest())


async def test_the_guest_does_not_let_go(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    message = r"^guest still uses xvdb \(state Connected after 0.01 s\); it stays attached\."
    with pytest.raises(TimedOut, match=message):
        await rig.device.remove(force=False, timeout=0.01)
    # it is attached as if nobody had asked, for both ends
    assert rig.backend() is S.Connected and rig.driver.connected
    assert rig.nodes(BACKEND)["online"] == "1"
    await removed(rig, polite_guest(rig))


async def polite_guest(rig: DeviceRig) -> None:
    await rig.until(lambda: rig.device.state is S.Closing)
    rig.write(S.Closed)


async def test_the_guest_closes_too_late(rig: DeviceRig) -> None:
    """An old Linux goes to Closing and waits for the last user (umount)."""
    await rig.guest(S.Initialised, S.Connected)

    async def guest() -> None:
        await rig.until(lambda: rig.device.state is S.Closing)
        rig.write(S.Closing)

    with pytest.raises(TimedOut, match=r"state Closing"):
        async with asyncio.timeout(5):
            helper = rig.spawn(guest())
            await rig.device.remove(force=False, timeout=0.05)
    await helper
    assert rig.driver.connected  # it still reads and writes
    assert await rig.guest(S.Closed) is S.Closed
    await removed(rig, timeout=0)


async def test_nothing_opens_while_it_is_being_removed(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)

    async def guest() -> None:
        await rig.until(lambda: rig.device.state is S.Closing)
        assert await rig.guest(S.Initialising) is S.Closing
        assert await rig.guest(S.Initialised) is S.Closing
        rig.write(S.Closed)

    await removed(rig, guest())
    assert rig.driver.calls == ["connect", "disconnect"]


async def test_force(rig: DeviceRig) -> None:  # L6
    await rig.guest(S.Initialised, S.Connected)
    await removed(rig, force=True)


async def test_force_while_somebody_asks_politely(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    polite = rig.spawn(rig.device.remove(force=False, timeout=5))
    await rig.settle()
    with pytest.raises(Busy, match="under way"):
        await rig.device.remove(force=False, timeout=5)
    await removed(rig, force=True)
    await polite


async def test_nobody_waits_for_the_removal_any_more(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    asking = rig.spawn(rig.device.remove(force=False, timeout=5))
    await rig.settle()
    assert rig.backend() is S.Closing
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert rig.backend() is S.Connected


async def test_a_fault_during_the_removal_is_not_undone(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    asking = rig.spawn(rig.device.remove(force=False, timeout=0.05))
    await rig.settle()
    rig.device.fail("the ring is broken")
    with pytest.raises(TimedOut):
        await asking
    assert rig.backend() is S.Closing


async def test_storage_that_hangs(rig: DeviceRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CUT_OFF_TIMEOUT", 0.01)
    await rig.guest(S.Initialised, S.Connected)
    rig.driver.hold = asyncio.Event()
    with pytest.raises(TimedOut, match=r"cannot cut off xvdb: its requests have not ended after 0\.01 s"):
        await rig.device.remove(force=True, timeout=5)
    assert not rig.store.exists(BACKEND)
    rig.driver.hold.set()
    await removed(rig)  # again, once it goes on


async def test_close_while_it_disconnects(rig: DeviceRig) -> None:
    """The guest closes, its requests take time, and the VM ends meanwhile."""
    await rig.guest(S.Initialised, S.Connected)
    rig.driver.hold = asyncio.Event()
    rig.write(S.Closed)
    await rig.settle()
    assert rig.driver.calls == ["connect", "disconnect"] and rig.driver.connected
    closing = rig.spawn(rig.device.close())
    await rig.settle()
    assert not closing.done()
    rig.driver.hold.set()
    await closing
    assert not rig.driver.connected and not rig.store.exists(FRONTEND)


async def test_closing_because_it_is_asked_to_is_no_refusal(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised)
    waiting = rig.spawn(rig.device.wait_connected(5))
    await removed(rig, polite_guest(rig))
    with pytest.raises(XenpvdError, match="removed meanwhile"):
        await waiting
