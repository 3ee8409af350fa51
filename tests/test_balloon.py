from __future__ import annotations

import asyncio

import pytest

from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd.balloon import MIB, PAGE, ShimLine
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig, Busy, StateError, TimedOut, Unsupported
from xenpvd.tasks import Tasks
from xenpvd.views import Runstate

TARGET = "/local/domain/1/memory/target"
#: The shim keeps 0x800 + 0x1000 - 2 pages: 24 MiB but two pages
LINE = b"(XEN) shim used pages 0x800 reserving 0x1000 free pages\n"
KEPT = 0x800 + 0x1000 - 2
RAM = 256
GUEST = RAM * MIB - KEPT * PAGE


@pytest.fixture
async def sized(house: House, definition: GuestConfig, machines: list[FakeMachine]) -> House:
    """A guest of 256 MiB whose shim has told what it keeps."""
    await house.guest.start(definition.model_copy(update={"memory": RAM}))
    machines[0].owner.machine_log(LINE)
    return house


# -- the shim's line


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
def test_the_line_is_found_in_pieces_of_any_size(piece: int) -> None:
    log = b"(XEN) Xen version\n" * 400 + LINE + b"(XEN) more\n"
    line = ShimLine(RAM * MIB)
    came = [line.feed(log[at : at + piece]) for at in range(0, len(log), piece)]
    assert line.guest == GUEST and came.count(True) == 1
    assert not line.feed(LINE.replace(b"0x800", b"0x900")) and line.guest == GUEST  # the first one counts


def test_a_time_stamp_may_stand_before_it() -> None:
    line = ShimLine(RAM * MIB)
    assert line.feed(LINE.replace(b"(XEN) ", b"(XEN) [2026-01-01 00:00:00] "))


def test_a_shim_that_reserves_nothing() -> None:
    line = ShimLine(RAM * MIB)
    assert line.feed(LINE.replace(b"0x1000", b"0")) and line.guest == RAM * MIB - 0x7FE * PAGE


@pytest.mark.parametrize(
    "log",
    [
        b"(d1) " + LINE.removeprefix(b"(XEN) "),  # the guest's own, by guest_loglvl=all
        b"(XEN) (d1) " + LINE.removeprefix(b"(XEN) "),
        b"x" + LINE,
        LINE.replace(b"0x800", b"0x100000"),  # more than there is
        LINE.replace(b"0x800", b"0x0").replace(b"0x1000", b"0x0"),  # less than nothing
        LINE.replace(b"0x800", b"0x" + b"f" * 100),
        LINE.replace(b" free", b""),
    ],
)
def test_what_only_looks_like_it_is_no_size(log: bytes) -> None:
    line = ShimLine(RAM * MIB)
    assert not line.feed(log) and line.guest is None


def test_a_log_without_it_is_not_kept() -> None:
    line = ShimLine(RAM * MIB)
    for _ in range(100):
        line.feed(bytes(4096))
    assert len(line._seen) <= 4096


# -- what there is


async def test_info(sized: House, machines: list[FakeMachine]) -> None:
    machines[0].ballooned = 10
    info = await sized.guest.balloon.info(sized.guest.there("look"))
    assert (info.ram, info.guest, info.ballooned) == (RAM * MIB, GUEST, 10 * PAGE)
    assert info.target is None and info.pages == "4k"
    assert info.resident == sum(region.resident for region in info.regions) == RAM * MIB // 2


async def test_without_the_line_the_size_is_not_known(running: House) -> None:
    assert (await running.guest.balloon.info(running.guest.there("look"))).guest is None
    with pytest.raises(Unsupported, match="has not told how much it keeps") as told:
        await running.guest.balloon.set_target(128, False, 1)
    assert told.value.data["feature"] == "memory.target"
    assert not running.guest.xenstore.exists(TARGET)


# -- targets


async def test_down_and_up(sized: House, machines: list[FakeMachine]) -> None:
    machine, balloon = machines[0], sized.guest.balloon
    tasks = Tasks()
    going = tasks.spawn(balloon.set_target(156, True, 5), "down")
    await asyncio.sleep(0)
    assert sized.guest.xenstore.client.read(TARGET) == b"%d" % ((GUEST - 100 * MIB) // 1024)
    assert await machine.guest_store().ask(2, b"memory/target\0") == b"%d" % ((GUEST - 100 * MIB) // 1024)
    machine.guest_balloons(99 * 256)
    await asyncio.sleep(0)
    assert not going.done() and not sized.told("memory.target")
    machine.guest_balloons(100 * 256)
    done = await going
    assert (done.asked_mib, done.reached_mib) == (156, 156) and done.confirmed is not None
    machine.owner.machine_changed()
    assert sized.told("memory.target") == [{"asked_mib": 156, "reached_mib": 156}]  # once
    assert (await balloon.info(sized.guest.there("look"))).target == 156 * MIB
    whole = await balloon.set_target(RAM, False, 5)
    assert (whole.reached_mib, whole.confirmed) == (156, None)
    assert sized.guest.xenstore.client.read(TARGET) == b"%d" % (GUEST // 1024)
    machine.guest_balloons(0)
    assert sized.told("memory.target")[1:] == [{"asked_mib": RAM, "reached_mib": RAM}]


async def test_what_it_holds_already_is_reached_at_once(sized: House) -> None:
    done = await sized.guest.balloon.set_target(RAM, True, 5)
    assert done.reached_mib == RAM and done.confirmed is not None


async def test_a_guest_that_stops_short_is_told_how_far_it_came(
    sized: House, machines: list[FakeMachine]
) -> None:
    machines[0].guest_balloons(40 * 256 + 1)
    with pytest.raises(TimedOut, match="the guest is at 216") as told:
        await sized.guest.balloon.set_target(156, True, 0.02)
    assert told.value.data["reached_mib"] == 216
    assert sized.told("memory.target") == [{"asked_mib": 156, "reached_mib": 216}]
    machines[0].guest_balloons(100 * 256)  # it has gone on
    assert sized.told("memory.target")[1:] == [{"asked_mib": 156, "reached_mib": 156}]


@pytest.mark.parametrize("mib", [0, 87, 257, -1])
async def test_targets_have_bounds(sized: House, mib: int) -> None:
    with pytest.raises(BadConfig, match="it takes 88 to 256"):
        await sized.guest.balloon.set_target(mib, False, 1)


async def test_the_smallest_target_leaves_the_guest_64_mib(sized: House) -> None:
    await sized.guest.balloon.set_target(88, False, 1)
    assert int(sized.guest.xenstore.client.read(TARGET)) >= 64 * 1024


async def test_the_last_target_counts(sized: House) -> None:
    tasks = Tasks(lambda *_: None)
    first = tasks.spawn(sized.guest.balloon.set_target(156, True, 5), "first")
    await asyncio.sleep(0)
    await sized.guest.balloon.set_target(200, False, 5)
    with pytest.raises(Busy):
        await first


async def test_a_target_of_a_guest_that_ends(sized: House, machines: list[FakeMachine]) -> None:
    asking = asyncio.gather(sized.guest.balloon.set_target(156, True, 5), return_exceptions=True)
    await asyncio.sleep(0)
    machines[0].end("poweroff")
    assert isinstance((await asking)[0], StateError)
    assert not sized.guest.xenstore.exists("/local/domain/1")


async def test_a_target_outlives_a_reboot_and_not_a_start(sized: House, machines: list[FakeMachine]) -> None:
    guest = sized.guest
    await guest.balloon.set_target(156, False, 5)
    machines[0].guest_balloons(100 * 256)
    machines[0].end("reboot")
    await sized.until(Runstate.STARTING)
    await sized.until(Runstate.RUNNING)
    assert not guest.xenstore.exists(TARGET)  # how much the shim keeps now is not known yet
    machines[1].owner.machine_log(LINE.replace(b"0x800", b"0x900"))
    assert guest.xenstore.client.read(TARGET) == b"%d" % ((GUEST - 0x100 * PAGE - 100 * MIB) // 1024)
    machines[1].guest_balloons(100 * 256)
    assert len(sized.told("memory.target")) == 2
    await guest.destroy()
    assert guest.config is not None
    await guest.start(guest.config)
    machines[2].owner.machine_log(LINE)
    assert not guest.xenstore.exists(TARGET)
    assert (await guest.balloon.info(guest.there("look"))).target is None


async def test_a_guest_without_a_shim_counts_from_static_max_down(
    house: House, definition: GuestConfig, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpvd.guest.load_image", lambda config: None)
    config = definition.model_copy(update={"memory": RAM, "type": "pvh"})
    await house.guest.start(config)
    machines[0].owner.machine_log(LINE)  # anybody's
    info = await house.guest.balloon.info(house.guest.there("look"))
    assert info.guest == RAM * MIB
    await house.guest.balloon.set_target(64, False, 5)
    assert house.guest.xenstore.client.read(TARGET) == b"65536"
    machines[0].end("reboot")
    await house.until(Runstate.STARTING)
    await house.until(Runstate.RUNNING)
    assert house.guest.xenstore.client.read(TARGET) == b"65536"  # before a vCPU runs
