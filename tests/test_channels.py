"""Further consoles over a guest's lives, by a guest on machines without KVM."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.console_frontend import ConsoleFrontend
from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.backends import device
from xenpvd.backends.console.logfile import LogFile
from xenpvd.config import ChannelConfig, GuestConfig
from xenpvd.errors import BadConfig, Exists, HostError, NotFound, StateError, TimedOut
from xenpvd.views import ChannelAdded, Runstate

AGENT = ChannelConfig(name="agent")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to look at what is gone."""
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0.05)


def nodes(number: int) -> str:
    return f"/local/domain/1/device/console/{number}"


async def take_up(house: House, machine: FakeMachine, number: int = 1) -> ConsoleFrontend:
    """As Linux does: grant a page, offer a port, and follow the backend to Connected."""
    store, front = house.guest.xenstore.client, ConsoleFrontend()
    backend = store.watch(f"/local/domain/0/backend/console/1/{number}/state")
    port = machine.evtchn.alloc_unbound()
    try:
        async with asyncio.timeout(5):
            await anext(backend)
            while not house.guest.xenstore.exists(nodes(number)):
                await anext(backend)
            store.write(f"{nodes(number)}/ring-ref", f"{machine.grants.grant(front.page)}")
            store.write(f"{nodes(number)}/port", f"{port}")
            store.write(f"{nodes(number)}/state", f"{XenbusState.Initialised:d}")
            while port not in machine.evtchn.ports:
                await anext(backend)
    finally:
        backend.close()
    front.port = machine.evtchn.ports[port]
    store.write(f"{nodes(number)}/state", f"{XenbusState.Connected:d}")
    return front


def adding(
    house: House, config: ChannelConfig = AGENT, wait: bool = True, timeout: float = 5
) -> asyncio.Future[tuple[ChannelAdded]]:
    guest = house.guest
    return asyncio.gather(guest.channels.add(guest.running("add"), config, wait, timeout))


async def removing(house: House, name: str = "agent", force: bool = True) -> bool:
    guest = house.guest
    return await guest.channels.remove(guest.domain, name, force=force, missing_ok=False, timeout=1)


async def test_add_talk_reboot_and_remove(running: House, machines: list[FakeMachine]) -> None:
    add = adding(running)
    front = await take_up(running, machines[0])
    (added,) = await add
    assert added.changed and added.console.number == 1 and added.console.connected
    assert not (await adding(running))[0].changed
    front.put(b"first life")
    await running.guest.reset()
    front = await take_up(running, machines[1])
    history = running.guest.consoles.get("agent").history
    assert history.read(0, 99) == (0, b"first life"), "the last bytes of a life are taken, too"
    front.prints(b", second")
    assert await history.wait(10)
    viewer = running.guest.consoles.attach("agent", "rw", None, None, "me")
    assert await viewer.read() == b"first life" and await viewer.read() == b", second"
    assert await removing(running)
    assert viewer.ended == "the console was removed"
    with pytest.raises(NotFound, match="no console 'agent'"):
        running.guest.consoles.get("agent")
    assert not running.guest.xenstore.exists(nodes(1))
    assert running.told("console.added") == [{"console": "agent", "number": 1}]
    assert running.told("console.removed") == [{"console": "agent", "forced": True}]


async def test_who_does_not_take_it_up_is_left_without(running: House) -> None:
    with pytest.raises(TimedOut, match="did not take up channel agent"):
        await adding(running, timeout=0.05)
    assert not running.guest.xenstore.exists(nodes(1))
    assert [one.console for one in running.guest.consoles.listing()] == ["0", "xen"]


async def test_an_add_that_a_life_does_not_take_up_is_the_next_ones(
    running: House, machines: list[FakeMachine]
) -> None:
    add = adding(running)
    await running.event("console.added")
    await running.guest.reset()
    with pytest.raises(StateError, match="its next life is offered it"):
        await add
    await take_up(running, machines[1])
    assert (await adding(running))[0].console.connected


async def test_numbers_and_names(running: House, tmp_path: Path) -> None:
    await adding(running, ChannelConfig(name="two", number=2), wait=False)
    (one,) = await adding(running, ChannelConfig(name="one"), wait=False)
    (three,) = await adding(running, ChannelConfig(name="three"), wait=False)
    assert (one.console.number, three.console.number) == (1, 3)
    with pytest.raises(Exists, match="there is another one"):
        await adding(running, ChannelConfig(name="two", number=4), wait=False)
    with pytest.raises(BadConfig, match="number 2 is taken"):
        await adding(running, ChannelConfig(name="other", number=2), wait=False)
    with pytest.raises(HostError, match="cannot log console logged"):
        await adding(running, ChannelConfig(name="logged", log=str(tmp_path)), wait=False)
    for number in range(4, 10):
        await adding(running, ChannelConfig(name=f"c{number}"), wait=False)
    with pytest.raises(BadConfig, match="as many as there may be"):
        await adding(running, ChannelConfig(name="tenth"), wait=False)
    with pytest.raises(NotFound, match="there is none"):
        await removing(running, "tenth")


async def test_a_definition_has_some_and_those_added_go_with_it(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    first = definition.model_copy(update={"channel": (AGENT,), "on_poweroff": "preserve"})
    await house.guest.start(first)
    front = await take_up(house, machines[-1])
    front.prints(b"hello")
    history = house.guest.consoles.get("agent").history
    assert await history.wait(0)
    await adding(house, ChannelConfig(name="added"), wait=False)
    machines[-1].end("poweroff")
    await house.until(Runstate.STOPPED)
    await house.guest.start(first)
    assert [one.console for one in house.guest.consoles.listing()] == ["0", "xen", "agent"]
    assert house.guest.consoles.get("agent").history is history, "it goes on"
    assert house.guest.xenstore.exists(nodes(1)) and not house.guest.xenstore.exists(nodes(2))
    await house.guest.destroy()
    both = (ChannelConfig(name="other"), ChannelConfig(name="agent", number=1))
    await house.guest.start(definition.model_copy(update={"channel": both}))
    assert {one.console: one.number for one in house.guest.consoles.listing()}["other"] == 2


async def test_two_remove_it_by_force_and_it_is_told_once(running: House) -> None:
    await adding(running, wait=False)
    assert await asyncio.gather(removing(running), removing(running)) == [True, True]
    assert len(running.told("console.removed")) == 1


@pytest.mark.parametrize("other", [{"name": "agent"}, {"name": "b", "number": 3}])
def test_two_of_one_name_or_number(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one name, or one number"):
        GuestConfig.model_validate({"kernel": "/k", "channel": [{"name": "agent", "number": 3}, other]})


class SlowLog:
    """Storage on which a log file takes its time to open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opening, self.go = asyncio.Event(), asyncio.Event()
        opened = LogFile.open

        async def open_slowly(logfile: LogFile, before: LogFile | None = None) -> None:
            self.opening.set()
            await self.go.wait()
            await opened(logfile, before)

        monkeypatch.setattr(LogFile, "open", open_slowly)


async def test_an_add_whose_log_opens_too_late_leaves_nothing(
    running: House,
    definition: GuestConfig,
    machines: list[FakeMachine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowLog(monkeypatch)
    add = adding(running, ChannelConfig(name="agent", log=str(tmp_path / "agent.log")), wait=False)
    await slow.opening.wait()
    with pytest.raises(NotFound):
        running.guest.consoles.get("agent")
    await running.guest.destroy()
    other = definition.model_copy(update={"channel": (ChannelConfig(name="other"),)})
    await running.guest.start(other)
    front = await take_up(running, machines[1])
    slow.go.set()
    with pytest.raises(StateError, match="the guest has just ended"):
        await add
    assert [one.console for one in running.guest.consoles.listing()] == ["0", "xen", "other"]
    front.prints(b"undisturbed")
    assert await running.guest.consoles.get("other").history.wait(0)


async def test_a_log_that_cannot_be_opened_leaves_no_console(running: House, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot log console agent"):
        await adding(running, ChannelConfig(name="agent", log=str(tmp_path)), wait=False)
    assert (await adding(running, wait=False))[0].changed


async def test_two_remove_a_connected_one_by_force(running: House, machines: list[FakeMachine]) -> None:
    add = adding(running)
    await take_up(running, machines[0])
    await add
    assert await asyncio.gather(removing(running), removing(running)) == [True, True]
    assert not machines[0].grants.mapped


async def test_a_remove_under_way_holds_up_no_end(
    running: House, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 60)
    add = adding(running)
    await take_up(running, machines[0])
    await add
    remove = asyncio.gather(removing(running, force=True))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(running.guest.reset(), 5)
    assert await remove == [True]
