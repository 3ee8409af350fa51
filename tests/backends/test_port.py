from __future__ import annotations

import asyncio

from tests.fakes.evtchn import FakeEvtchnOps, FakeEvtchnPort
from xenpvd.backends.port import PortKicks


async def waits(kicks: PortKicks) -> bool:
    """Does ``wait`` not return, though the loop has looked at its files?"""
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(kicks.wait())
        for _ in range(5):
            await asyncio.sleep(0)
        return waiter.cancel()


async def test_kicks_are_taken_once_and_merged():
    port = FakeEvtchnPort()
    kicks = PortKicks(port)
    assert await waits(kicks)
    port.guest_kick()
    port.guest_kick()
    await asyncio.wait_for(kicks.wait(), 5)
    assert await waits(kicks)
    kicks.poke()
    await asyncio.wait_for(kicks.wait(), 5)
    kicks.close()
    kicks.close()
    port.close()


async def test_a_kick_from_before_is_seen():
    port = FakeEvtchnPort()
    port.guest_kick()
    kicks = PortKicks(port)
    await asyncio.wait_for(kicks.wait(), 5)
    kicks.close()
    port.close()


async def test_the_fake_notifies_its_guest():
    ops = FakeEvtchnOps()
    port = ops.bind_interdomain(ops.alloc_unbound())
    assert not port.guest_pending()
    port.notify()
    await port.guest_wait()
    assert not port.guest_pending()
    port.notify()
    assert port.guest_pending()
    ops.close()
    port.notify()
