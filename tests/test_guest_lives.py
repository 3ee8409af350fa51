"""Pausing, resetting, and what follows a life that ended by itself."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fds import open_fds
from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd.config import GuestConfig
from xenpvd.errors import Busy, ImageError, StateError, TimedOut
from xenpvd.tasks import in_thread
from xenpvd.views import Phase, Runstate


async def start(house: House, definition: GuestConfig, **changes: Any) -> None:
    await house.guest.start(definition.model_copy(update=changes))


async def crash(house: House, machines: list[FakeMachine], reason: str = "crash") -> None:
    """The newest machine ends; returns when the next life begins or waits."""
    machines[-1].end(reason)
    await house.until(Runstate.STARTING)


# -- pause


async def test_pause_and_resume(running: House, machines: list[FakeMachine]) -> None:
    guest = running.guest
    await guest.pause()
    assert machines[0].paused and guest.state is Runstate.PAUSED
    await guest.pause()
    await guest.wait("paused", 1)
    assert guest.status("web1").uptime is not None
    await guest.resume()
    await guest.resume()
    assert not machines[0].paused and guest.state is Runstate.RUNNING
    assert running.states == ["starting", "running", "paused", "running"]  # each told once


async def test_a_guest_may_start_paused(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await house.guest.start(definition, paused=True)
    assert machines[0].paused and machines[0].started.is_set()
    assert house.states == ["starting", "paused"]
    await house.guest.resume()
    assert house.guest.state is Runstate.RUNNING


async def test_what_a_paused_guest_cannot_do_names_the_cure(running: House) -> None:
    guest = running.guest
    await guest.pause()
    for asking in (
        guest.shutdown("poweroff", 1, "fail"),
        guest.requests.sysrq("h", 1),
        guest.requests.set_online(1, True, 1),
        guest.balloon.set_target(64, True, 1),
    ):
        with pytest.raises(StateError, match=r"the guest is paused.*; resume it first"):
            await asking
    with pytest.raises(StateError, match="resume it first"):
        guest.running("add xvdb")


@pytest.mark.parametrize("verb", ["pause", "resume", "reset"])
async def test_verbs_that_need_a_guest(house: House, verb: str) -> None:
    with pytest.raises(StateError, match="the guest is defined") as refused:
        await getattr(house.guest, verb)()
    assert refused.value.data["state"] == "defined"


async def test_destroy_when_paused(running: House, machines: list[FakeMachine]) -> None:
    await running.guest.pause()
    await running.guest.destroy()
    assert machines[0].closed and running.guest.state is Runstate.STOPPED


async def test_a_phase_may_come_after_a_pause(running: House, machines: list[FakeMachine]) -> None:
    await running.guest.pause()
    waiting = asyncio.gather(running.guest.wait("shim", 5))
    await asyncio.sleep(0)
    await running.guest.resume()
    machines[0].owner.machine_log(b"(XEN) hello\n")
    await waiting


async def test_a_fault_of_ours_ends_a_paused_guest_too(running: House, machines: list[FakeMachine]) -> None:
    await running.guest.pause()
    running.guest.fault("test", ZeroDivisionError("ours"))
    await running.until(Runstate.CRASHED)
    assert machines[0].closed


# -- reset


@pytest.mark.parametrize("paused", [False, True])
async def test_reset_is_a_new_life_with_the_images_open(
    running: House, machines: list[FakeMachine], paused: bool
) -> None:
    image = running.guest.drives.images["xvda"][1]
    if paused:
        await running.guest.pause()
    await running.guest.reset()
    assert running.guest.state is Runstate.RUNNING and len(machines) == 2
    assert machines[0].closed and not machines[1].paused
    assert running.guest.drives.images["xvda"][1] is image
    assert running.states[-3:] == ["stopping", "starting", "running"]
    assert running.over == 0


async def test_a_reset_that_cannot_begin_again_says_why(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    (tmp_path / "kernel").unlink()
    with pytest.raises(ImageError, match="cannot read the kernel"):
        await running.guest.reset()
    assert running.guest.state is Runstate.CRASHED and not running.guest.drives.images
    assert str(running.reason).startswith("restart failed: cannot read the kernel")


async def test_no_reset_onto_a_disk_that_hangs(
    running: House, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(drive: object) -> None:
        raise TimedOut("its requests have not ended")

    monkeypatch.setattr("xenpvd.domain.BlockBackend.disconnect", hang)
    with pytest.raises(Busy, match="disk xvda hangs"):
        await running.guest.reset()
    assert len(machines) == 1 and running.reason == "not restarted: disk xvda hangs"


async def test_the_machine_may_end_while_it_is_reset(running: House, machines: list[FakeMachine]) -> None:
    machines[0].end("poweroff")
    await running.guest.reset()  # which of the two comes first is nobody's to say, but one of them counts
    assert running.guest.state is Runstate.RUNNING and running.over == 0


# -- policies


@pytest.mark.parametrize("reason", ["poweroff", "reboot", "crash", "watchdog", "fault"])
@pytest.mark.parametrize("policy", ["destroy", "restart", "preserve"])
async def test_policies(
    house: House, definition: GuestConfig, machines: list[FakeMachine], reason: str, policy: str
) -> None:
    key = "crash" if reason == "fault" else reason
    others = {
        f"on_{other}": "destroy" if policy == "preserve" else "preserve"
        for other in ("poweroff", "reboot", "crash", "watchdog")
        if other != key
    }
    await start(house, definition, **others, **{f"on_{key}": policy})
    image = house.guest.drives.images["xvda"][1]
    machines[0].end(reason, "why", {"rip": 1})
    crashed = reason in ("crash", "watchdog", "fault")
    if policy == "restart":
        await house.until(Runstate.STARTING)
        await house.until(Runstate.RUNNING)
        assert len(machines) == 2 and house.guest.drives.images["xvda"][1] is image
        assert house.over == 0
    else:
        await house.until(Runstate.CRASHED if crashed else Runstate.STOPPED)
        assert house.reason == reason and len(machines) == 1 and not house.guest.drives.images
        assert house.over == (policy == "destroy")
    crashes = [(data["reason"], data["detail"], data["regs"]) for data in house.told("guest.crash")]
    assert crashes == ([(reason, "why", {"rip": 1})] if crashed else [])


async def test_a_crash_is_told_before_the_guest_is_crashed(
    running: House, machines: list[FakeMachine]
) -> None:
    machines[0].end("crash")
    await running.until(Runstate.CRASHED)
    names = [event.name for event in running.events.history(("guest.crash", "guest.state"))]
    assert names[-2:] == ["guest.crash", "guest.state"]


# -- crash loops


@pytest.mark.parametrize("reason", ["crash", "watchdog", "poweroff"])
async def test_a_crash_loop_is_slowed_down(
    house: House, definition: GuestConfig, machines: list[FakeMachine], reason: str
) -> None:
    """P10."""
    await start(house, definition, **{f"on_{reason}": "restart"})
    await crash(house, machines, reason)
    assert house.reason == reason  # the first one is at once
    await house.until(Runstate.RUNNING)
    for n, seconds in enumerate((1, 2, 4, 8, 16, 32, 60, 60), 2):
        await crash(house, machines, reason)
        await house.until_reason(f"restart in {seconds} s after {reason}")
        assert house.guest.status("web1").uptime is None
        await house.clock.until_slept(n - 1)
        house.clock.advance(seconds - 0.5)
        await asyncio.sleep(0)
        assert len(machines) == n and house.guest.state is Runstate.STARTING
        house.clock.advance(0.5)
        await house.until(Runstate.RUNNING)
        assert house.reason is None
    assert house.over == 0


async def waiting(house: House, definition: GuestConfig, machines: list[FakeMachine]) -> None:
    """A guest that has crashed twice and waits for its restart."""
    await start(house, definition, on_crash="restart")
    await crash(house, machines)
    await house.until(Runstate.RUNNING)
    await crash(house, machines)
    await house.clock.until_slept(1)


async def test_a_good_life_is_followed_at_once(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await start(house, definition, on_crash="restart")
    for _ in range(3):
        house.clock.advance(60)
        await crash(house, machines)
        await house.until(Runstate.RUNNING)
    assert house.clock.slept == [] and len(machines) == 4


async def test_reboots_are_not_slowed_down(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await start(house, definition)
    for _ in range(4):
        house.guest.progress.reached(Phase.DEVICES)
        await crash(house, machines, "reboot")
        await house.until(Runstate.RUNNING)
    assert house.clock.slept == [] and len(machines) == 5


async def test_reboots_that_come_before_the_guest_is_up_are_a_crash_loop(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    """A kernel with panic=1 ends a panic so."""
    await start(house, definition)
    await crash(house, machines, "reboot")
    await house.until(Runstate.RUNNING)
    await crash(house, machines, "reboot")
    await house.clock.until_slept(1)
    with pytest.raises(
        StateError, match=r"restart in 1 s after reboot; reset does so at once, destroy gives it up"
    ):
        await house.guest.pause()
    house.clock.advance(1)
    await house.until(Runstate.RUNNING)
    house.guest.progress.reached(Phase.DEVICES)
    await crash(house, machines, "reboot")
    await house.until(Runstate.RUNNING)
    assert house.clock.slept == [1]


async def test_a_pause_that_the_guests_end_overtakes_is_none(
    house: House, definition: GuestConfig, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(house, definition)
    monkeypatch.setattr(machines[0], "pause", lambda: setattr(machines[0], "over", True))
    with pytest.raises(StateError, match="the guest has just ended"):
        await house.guest.pause()
    assert "paused" not in house.states


@pytest.mark.parametrize("end", ["destroy", "close"])
async def test_who_ends_the_guest_does_not_wait_for_its_restart(
    house: House, definition: GuestConfig, machines: list[FakeMachine], end: str
) -> None:
    await waiting(house, definition, machines)
    async with asyncio.timeout(1):
        await getattr(house.guest, end)()
    assert house.guest.state is Runstate.STOPPED and not house.guest.drives.images
    house.clock.advance(60)
    await asyncio.sleep(0)
    assert len(machines) == 2 and house.over == (end == "destroy")


async def test_start_cuts_the_wait_short(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await waiting(house, definition, machines)
    image = house.guest.drives.images["xvda"][1]
    assert house.guest.config is not None
    await house.guest.start(house.guest.config)
    assert house.guest.state is Runstate.RUNNING and len(machines) == 3
    assert house.guest.drives.images["xvda"][1] is image
    house.clock.advance(60)
    await asyncio.sleep(0)
    assert len(machines) == 3
    await crash(house, machines)  # it counts from the beginning again
    await house.until(Runstate.RUNNING)
    assert len(house.clock.slept) == 1


async def test_start_by_another_definition_instead_of_a_restart(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await waiting(house, definition, machines)
    await start(house, definition, cmdline="console=hvc0 single", on_crash="preserve")
    assert house.guest.state is Runstate.RUNNING
    assert house.guest.config is not None and house.guest.config.cmdline.endswith("single")


async def test_start_that_fails_instead_of_a_restart_leaves_it_stopped(
    house: House, definition: GuestConfig, machines: list[FakeMachine], tmp_path: Path
) -> None:
    await waiting(house, definition, machines)
    (tmp_path / "kernel").unlink()
    with pytest.raises(ImageError):
        await start(house, definition, on_crash="restart")
    assert house.guest.state is Runstate.STOPPED and not house.guest.drives.images


async def test_a_restart_that_fails_is_not_tried_again(
    house: House,
    definition: GuestConfig,
    machines: list[FakeMachine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await waiting(house, definition, machines)
    (tmp_path / "kernel").unlink()
    house.clock.advance(1)
    await house.until(Runstate.CRASHED)
    assert str(house.reason).startswith("restart failed: cannot read the kernel")
    assert not house.guest.drives.images and len(house.clock.slept) == 1
    assert "cannot restart the guest" in caplog.text


async def test_the_last_life_is_the_last(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await start(house, definition, on_poweroff="restart")
    house.guest.no_more_lives()
    machines[0].end("poweroff")
    await house.until(Runstate.STOPPED)
    with pytest.raises(StateError, match="its daemon ends"):
        await start(house, definition)
    assert len(machines) == 1


async def test_a_shutdown_leaves_alone_what_another_one_asks(
    running: House, machines: list[FakeMachine]
) -> None:
    waits = asyncio.gather(running.guest.shutdown("poweroff", 5, "fail"))
    await asyncio.sleep(0)
    with pytest.raises(TimedOut, match=r"it goes on\. Try again"):
        await running.guest.shutdown("poweroff", 0.01, "fail")
    assert running.guest.xenstore.client.read("/local/domain/1/control/shutdown") == b"poweroff"
    machines[0].end("poweroff")
    (done,) = await waits
    assert not done.destroyed and done.state is Runstate.STOPPED


async def test_a_reboot_that_cannot_be_says_reboot(running: House) -> None:
    with pytest.raises(TimedOut, match="cannot reboot: "):
        await running.guest.shutdown("reboot", 0.01, "fail")
    await running.guest.pause()
    with pytest.raises(StateError, match="cannot reboot: "):
        await running.guest.shutdown("reboot", 1, "fail")


async def test_reset_cuts_the_wait_short(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    await waiting(house, definition, machines)
    image = house.guest.drives.images["xvda"][1]
    await house.guest.reset()
    assert house.guest.state is Runstate.RUNNING and len(machines) == 3
    assert house.guest.drives.images["xvda"][1] is image
    house.clock.advance(60)
    await asyncio.sleep(0)
    assert len(machines) == 3


async def test_no_reset_after_the_last_life(running: House, machines: list[FakeMachine]) -> None:
    running.guest.no_more_lives()
    with pytest.raises(StateError, match="cannot reset: the daemon ends"):
        await running.guest.reset()
    assert len(machines) == 1 and running.guest.state is Runstate.RUNNING and not machines[0].closed


@pytest.mark.parametrize("end", ["destroy", "close"])
@pytest.mark.parametrize("what", ["reset", "start", "restart"])
async def test_who_ends_the_guest_does_not_wait_for_files_that_hang(
    running: House, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch, what: str, end: str
) -> None:
    guest, entered, hangs = running.guest, threading.Event(), threading.Event()

    def hang(config: GuestConfig) -> None:
        entered.set()
        hangs.wait()

    assert guest.config is not None
    if what == "start":
        await guest.destroy()
    monkeypatch.setattr("xenpvd.guest.load_image", hang)
    asked = []
    if what == "restart":
        machines[0].end("reboot")
    else:
        asked.append(guest.start(guest.config) if what == "start" else guest.reset())
    begins = asyncio.gather(*asked, return_exceptions=True)
    try:
        await in_thread(partial(entered.wait, 5))
        async with asyncio.timeout(1):
            await getattr(guest, end)()
        for fault in await begins:
            assert isinstance(fault, StateError) and "was ended while its files were opened" in str(fault)
        assert guest.state in (Runstate.STOPPED, Runstate.CRASHED)
        assert len(machines) == 1 and not guest.drives.images
    finally:
        hangs.set()


async def test_lives_are_logged_with_their_reasons(
    running: House, machines: list[FakeMachine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xenpvd.guest")
    await running.guest.reset()
    machines[1].end("crash", "triple fault")
    await running.until(Runstate.CRASHED)
    assert [record.message for record in caplog.records] == [
        "a life ends: reset",
        "a life begins (reset), on kvm-xen",
        "a life ends: crash, triple fault",
    ]


async def test_a_hundred_reboots_leave_nothing_behind(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    """P10."""
    await start(house, definition)

    def footprint() -> dict[str, int]:
        store = house.guest.xenstore
        return {
            "tasks": len(asyncio.all_tasks()),
            "fds": len(open_fds()),
            "threads": sum(
                thread.name != "blocking call" for thread in threading.enumerate()
            ),  # those end soon
            "nodes": len(list(store.tree())),
            "connections": len(store._outlets),
            "watches": len(store.client._watches),
            "images": len(house.guest.drives.images),
        }

    seen = []
    for n in range(100):
        if n % 2:  # what a life leaves behind may depend on how far it came
            machines[-1].owner.machine_log(b"(XEN) hello\n")
            machines[-1].guest_prints(b"hello")
            await house.guest.wait("kernel", 5)
        asking = [house.guest.shutdown("reboot", 5, "fail")] if n % 3 else []
        pending = asyncio.gather(*asking)
        await asyncio.sleep(0)
        house.guest.progress.reached(Phase.DEVICES)
        await crash(house, machines, "reboot")
        await house.until(Runstate.RUNNING)
        await pending
        machines[:-1] = []
        seen.append(footprint())
    for what in seen[0]:
        first, last = ([row[what] for row in rows] for rows in (seen[:10], seen[-10:]))
        assert max(last) <= max(first), what
