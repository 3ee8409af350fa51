from __future__ import annotations

import asyncio

import pytest

from tests.fakes.house import House
from tests.fakes.machine import WATCH, WRITE, FakeMachine
from tests.fakes.xenstore_frontend import XenstoreFrontend
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig, Busy, StateError, TimedOut
from xenpvd.tasks import Tasks
from xenpvd.views import Runstate

READ = 2
SYSRQ = "/local/domain/1/control/sysrq"


async def watching(machine: FakeMachine, path: bytes) -> XenstoreFrontend:
    """The guest's connection, with a watch whose first event is taken."""
    store = machine.guest_store()
    assert await store.ask(WATCH, path + b"\0t\0") == b"OK\0"
    await store.event()
    return store


@pytest.fixture
async def smp(house: House, definition: GuestConfig, machines: list[FakeMachine]) -> House:
    """A guest with three CPUs, online, at xenbus."""
    await house.guest.start(definition.model_copy(update={"vcpus": 3, "on_reboot": "restart"}))
    machines[0].guest_onlines(range(3))
    await machines[0].guest_store().ask(READ, b"domid\0")
    return house


# -- shutdown


@pytest.mark.parametrize(
    ("mode", "then"), [("suspend", "fail"), ("crash", "fail"), ("", "fail"), ("halt", "restart")]
)
async def test_shutdown_takes_three_modes(running: House, mode: str, then: str) -> None:
    with pytest.raises(BadConfig, match="mode is poweroff, reboot or halt"):
        await running.guest.shutdown(mode, 1, then)


@pytest.mark.parametrize(
    ("mode", "end", "said"),
    [
        ("poweroff", "reboot", "has rebooted"),
        ("reboot", "poweroff", "has powered off"),
        ("poweroff", "crash", "has crashed"),
        ("poweroff", "watchdog", "has crashed"),
        ("halt", "reset", "was reset"),
        ("poweroff", "destroy", "was destroyed"),
    ],
)
async def test_a_shutdown_that_something_else_overtakes_is_not_told_as_done(
    running: House, machines: list[FakeMachine], mode: str, end: str, said: str
) -> None:
    asked = asyncio.gather(running.guest.shutdown(mode, 5, "fail"))
    await asyncio.sleep(0)
    if end in ("reset", "destroy"):
        await getattr(running.guest, end)()
    else:
        machines[-1].end(end)
    with pytest.raises(StateError, match=f"the guest {said} meanwhile"):
        await asked
    if end == "reboot":  # no life may begin once ``machines`` is undone: it would be a real one
        await running.until(Runstate.RUNNING)


async def test_a_shutdown_that_is_not_taken_is_not_asked_any_more(
    running: House, machines: list[FakeMachine]
) -> None:
    with pytest.raises(TimedOut, match=r"has not answered .* is not asked any more"):
        await running.guest.shutdown("poweroff", 0.01, "fail")
    assert running.guest.xenstore.client.read("/local/domain/1/control/shutdown") == b""
    done = await running.guest.shutdown("poweroff", 0.01, "destroy")
    assert done.destroyed and done.acknowledged is None


# -- sysrq


@pytest.mark.parametrize("answer", [b"", b"\0"])
async def test_a_key_is_pressed_when_the_guest_has_taken_it(
    running: House, machines: list[FakeMachine], answer: bytes
) -> None:
    store = await watching(machines[0], b"control/sysrq")
    tasks = Tasks()
    pressing = tasks.spawn(running.guest.requests.sysrq("h", 5), "press")
    await store.event()
    assert await store.ask(READ, b"control/sysrq\0") == b"h"
    assert not pressing.done()
    assert await store.ask(WRITE, b"control/sysrq\0" + answer) == b"OK\0"
    await pressing


async def test_keys_are_pressed_one_after_the_other(running: House, machines: list[FakeMachine]) -> None:
    store = await watching(machines[0], b"control/sysrq")
    pressing = asyncio.gather(*(running.guest.requests.sysrq(key, 5) for key in "sub"))
    pressed = b""
    while len(pressed) < 3:
        await store.event()
        key = await store.ask(READ, b"control/sysrq\0")
        assert isinstance(key, bytes)
        if key:
            pressed += key
            await store.ask(WRITE, b"control/sysrq\0")
    await pressing
    assert pressed == b"sub"


async def test_a_key_that_is_not_taken_is_taken_back(running: House) -> None:
    with pytest.raises(TimedOut, match=r"cannot press b: .* was taken back"):
        await running.guest.requests.sysrq("b", 0.02)
    assert running.guest.xenstore.client.read(SYSRQ) == b""


@pytest.mark.parametrize("key", ["", "bb", "\0", "\n", "ä", "\x7f"])
async def test_a_key_is_one_printable_character(running: House, key: str) -> None:
    with pytest.raises(BadConfig, match="one printable key"):
        await running.guest.requests.sysrq(key, 1)


async def test_the_guest_may_end_before_it_takes_the_key(running: House, machines: list[FakeMachine]) -> None:
    store = await watching(machines[0], b"control/sysrq")
    pressing = asyncio.gather(running.guest.requests.sysrq("c", 5), return_exceptions=True)
    await store.event()
    machines[0].end("poweroff")
    (fault,) = await pressing
    assert isinstance(fault, StateError) and "has ended meanwhile" in str(fault)
    await running.guest.progress.until(lambda: running.guest.domain is None)
    assert not running.guest.xenstore.exists("/local/domain/1")  # nothing was written after the end


# -- CPUs


def availability(house: House) -> list[bytes]:
    store = house.guest.xenstore.client
    return [store.read(f"/local/domain/1/cpu/{n}/availability") for n in range(3)]


async def test_cpus_go_and_come(smp: House, machines: list[FakeMachine]) -> None:
    store = await watching(machines[0], b"cpu")
    tasks = Tasks()
    going = tasks.spawn(smp.guest.requests.set_online(1, True, 5), "go")
    paths = {(await store.event())[0] for _ in range(2)}
    assert paths == {"cpu/1/availability", "cpu/2/availability"}  # and never that of CPU 0
    assert availability(smp) == [b"online", b"offline", b"offline"]
    machines[0].guest_onlines({0, 1})
    await asyncio.sleep(0)
    assert not going.done()
    machines[0].guest_onlines({0})
    done = await going
    assert (done.asked, done.online) == (1, (0,)) and done.confirmed is not None
    later = await smp.guest.requests.set_online(2, False, 5)
    assert (later.online, later.confirmed) == ((0,), None)
    assert availability(smp) == [b"online", b"online", b"offline"]


async def test_cpus_that_do_not_come_are_told(smp: House, machines: list[FakeMachine]) -> None:
    machines[0].guest_onlines({0, 2})
    with pytest.raises(TimedOut, match=r"the guest uses \[0, 2\]") as told:
        await smp.guest.requests.set_online(2, True, 0.02)
    assert told.value.data["online"] == [0, 2]


async def test_cpus_still_to_be_started_are_not_taken_for_offline(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await house.guest.start(definition.model_copy(update={"vcpus": 2}))
    machines[0].guest_onlines({0})  # the boot CPU's ports, long before xenbus
    house.guest.machine_log(b"(XEN) hello\n")
    with pytest.raises(TimedOut, match="still booting, phase shim"):
        await house.guest.requests.set_online(1, True, 0.02)


@pytest.mark.parametrize("count", [0, 4, -1])
async def test_cpus_have_bounds(smp: House, count: int) -> None:
    with pytest.raises(BadConfig, match="from 1 to 3"):
        await smp.guest.requests.set_online(count, True, 1)


async def test_the_last_wish_counts(smp: House, machines: list[FakeMachine]) -> None:
    tasks = Tasks(lambda *_: None)
    first = tasks.spawn(smp.guest.requests.set_online(1, True, 5), "first")
    await asyncio.sleep(0)
    second = tasks.spawn(smp.guest.requests.set_online(2, True, 5), "second")
    with pytest.raises(Busy, match=r"something else was asked for meanwhile\. That counts now; ask again"):
        await first
    machines[0].guest_onlines({0, 1})
    assert (await second).online == (0, 1)


async def test_the_cpus_asked_for_outlive_a_reboot_and_not_a_start(
    smp: House, machines: list[FakeMachine], definition: GuestConfig
) -> None:
    await smp.guest.requests.set_online(2, False, 5)
    waiting = asyncio.gather(smp.guest.requests.set_online(2, True, 5), return_exceptions=True)
    await asyncio.sleep(0)
    machines[0].end("reboot")
    assert isinstance((await waiting)[0], (StateError, Busy))
    await smp.until(Runstate.RUNNING)
    assert len(machines) == 2 and availability(smp) == [b"online", b"online", b"offline"]
    await smp.guest.destroy()
    assert smp.guest.config is not None
    await smp.guest.start(smp.guest.config)
    assert availability(smp) == [b"online"] * 3
