from __future__ import annotations

import asyncio
import threading

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


async def test_a_storm_of_kicks_is_one_a_pass_of_the_loop():
    """E2, E3: whatever the guest sends, nothing queues up and everybody else has a turn in between."""
    port = FakeEvtchnPort()
    kicks = PortKicks(port)
    over, sent = threading.Event(), 0

    def storm() -> None:
        nonlocal sent
        while not over.is_set():
            port.guest_kick()
            sent += 1

    taken = turns = 0

    async def take() -> None:
        nonlocal taken
        while True:
            await kicks.wait()
            taken += 1

    taking = asyncio.get_running_loop().create_task(take())
    sender = threading.Thread(target=storm)
    sender.start()
    while taken < 1000:
        await asyncio.sleep(0)
        turns += 1
    over.set()
    sender.join()
    taking.cancel()
    assert taken <= turns + 1 and taken <= sent
    assert await waits(kicks) or await waits(kicks), "at most one kick was left"
    kicks.close()
    port.close()
