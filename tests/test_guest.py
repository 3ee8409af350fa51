from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.backends.blkif.image import Image
from xenpvd.config import ConsoleConfig, DiskConfig, GuestConfig, ReadyConfig
from xenpvd.errors import (
    BadConfig,
    Exists,
    HostError,
    ImageError,
    NotFound,
    StateError,
    TimedOut,
    XenpvdError,
)
from xenpvd.tasks import in_thread
from xenpvd.views import Phase, Runstate

XVDB = 51728


# -- start


async def test_a_start_publishes_what_a_pv_guest_reads(running: House, machines: list[FakeMachine]) -> None:
    assert running.guest.state is Runstate.RUNNING and machines[0].started.is_set()
    store = machines[0].guest_store()
    for path, value in {
        "domid": b"1",
        "name": b"web1",
        "cpu/0/availability": b"online",
        "control/shutdown": b"",
        "memory/static-max": b"131072",
        "device/vbd/51712/state": b"1",
    }.items():
        assert await store.ask(2, path.encode() + b"\0") == value
    assert await store.ask(2, b"memory/target\0") == "ENOENT"  # Linux would balloon towards it for ever
    assert await store.ask(11, b"name\0evil") == "EACCES"
    assert await store.ask(11, b"data/ready\x001") == b"OK\0"


async def test_phases_are_told_in_order_and_once(running: House, machines: list[FakeMachine]) -> None:
    machine, guest = machines[0], running.guest
    machine.owner.machine_log(b"(XEN) hello\n")
    await guest.wait("shim", 5)
    machine.guest_prints(b"Linux version")
    await guest.wait("kernel", 5)
    await machine.guest_store().ask(1, b"device\0")
    await guest.wait("xenbus", 5)
    await machine.guest_disk(guest.xenstore.client, 51712).connect()
    await guest.wait("devices", 5)
    await guest.wait("ready", 5)
    assert guest.status("web1").ready
    assert [data["phase"] for data in running.told("guest.boot")] == list(Phase)
    assert bytes(guest.consoles.xen.history.tail(100)) == b"(XEN) hello\n"
    assert list(guest.status("web1").boot_times) == list(Phase)


async def test_start_twice_is_refused_with_the_state(running: House, definition: GuestConfig) -> None:
    with pytest.raises(StateError, match="it is running") as refused:
        await running.guest.start(definition)
    assert refused.value.data["state"] == "running"
    assert running.guest.state is Runstate.RUNNING


@pytest.mark.parametrize(
    ("field", "error", "says"),
    [
        ("kernel", ImageError, "cannot read the kernel"),
        ("ramdisk", ImageError, "cannot read the ramdisk"),
        ("shim", ImageError, "cannot read the shim"),
        ("disk", ImageError, "missing.img"),
    ],
)
async def test_a_start_that_fails_leaves_nothing(
    house: House,
    definition: GuestConfig,
    machines: list[FakeMachine],
    tmp_path: Path,
    field: str,
    error: type[Exception],
    says: str,
) -> None:
    missing = str(tmp_path / "missing.img")
    data = definition.model_dump()
    data[field] = {
        "disk": [*data["disk"], {"vdev": "xvdb", "target": missing}],
        "shim": {"path": missing},
    }.get(field, missing)
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(error, match=says):
        await house.guest.start(GuestConfig.model_validate(data))
    assert house.guest.state is Runstate.DEFINED and not machines
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    await house.guest.start(definition)  # the image's lock is free again
    assert house.guest.state is Runstate.RUNNING


async def test_a_guest_larger_than_the_host_is_refused(house: House, definition: GuestConfig) -> None:
    """P13."""
    with pytest.raises(BadConfig, match="this host has"):
        await house.guest.start(definition.model_copy(update={"memory": 1 << 20}))


async def test_a_machine_that_cannot_be_made_is_unwound(
    house: House, definition: GuestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7."""

    def refuse(*args: object) -> None:
        raise ImageError("no room", "x")

    monkeypatch.setattr("xenpvd.domain.Machine", refuse)
    with pytest.raises(ImageError):
        await house.guest.start(definition)
    assert house.states == ["starting", "defined"] and not house.guest.drives.images


# -- end


async def test_shutdown_is_acknowledged_and_ends_the_vm(running: House, machines: list[FakeMachine]) -> None:
    asked, result = await asyncio.gather(
        machines[0].guest_obeys_shutdown(), running.guest.shutdown("poweroff", 5, "fail")
    )
    assert asked == "poweroff"
    assert result.acknowledged is not None and result.stopped is not None
    await running.until(Runstate.STOPPED)
    assert machines[0].closed and not running.guest.drives.images
    assert running.over == 1  # on_poweroff = destroy
    assert not running.guest.xenstore.exists("/local/domain/1")


async def test_shutdown_without_an_answer_says_so_and_changes_nothing(running: House) -> None:
    with pytest.raises(TimedOut, match="has not answered"):
        await running.guest.shutdown("poweroff", 0.05, "fail")
    assert running.guest.state is Runstate.RUNNING


async def test_shutdown_then_destroy(running: House, machines: list[FakeMachine]) -> None:
    result = await running.guest.shutdown("poweroff", 0.05, "destroy")
    assert result.acknowledged is None and result.state is Runstate.STOPPED
    assert machines[0].closed


async def test_reboot_is_a_new_machine_with_the_same_disks_and_console(
    running: House, machines: list[FakeMachine]
) -> None:
    machines[0].guest_prints(b"first life\n")
    assert await running.guest.consoles.main.history.find(b"first life")
    image = running.guest.drives.images["xvda"][1]
    viewer = running.guest.consoles.main.attach("rw", None, "me")
    await asyncio.gather(machines[0].guest_obeys_shutdown(), running.guest.shutdown("reboot", 5, "fail"))
    await running.until(Runstate.RUNNING)
    assert len(machines) == 2 and machines[0].closed and not machines[1].closed
    assert running.guest.drives.images["xvda"][1] is image
    machines[1].guest_prints(b"second life\n")
    assert await running.guest.consoles.main.history.find(b"second life")
    assert [await viewer.read() for _ in range(2)] == [b"first life\n", b"second life\n"]
    assert running.over == 0


async def test_crash_is_kept_for_a_look_with_both_tails(running: House, machines: list[FakeMachine]) -> None:
    machines[0].owner.machine_log(b"(XEN) panic\n")
    machines[0].guest_prints(b"Oops")  # no kick is needed: the end drains the ring
    machines[0].end("crash", "SCHEDOP_shutdown(crash)", {"rip": 1})
    await running.until(Runstate.CRASHED)
    crash = await running.event("guest.crash")
    assert crash["console_tail"] == "Oops" and crash["xen_tail"] == "(XEN) panic\n"
    assert crash["regs"] == {"rip": 1}
    assert running.over == 0 and running.guest.status("web1").reason == "crash"
    await running.guest.destroy()
    assert running.guest.state is Runstate.STOPPED and running.over == 1


async def test_a_fault_of_ours_ends_the_guest_and_not_the_daemon(
    running: House, machines: list[FakeMachine], caplog: pytest.LogCaptureFixture
) -> None:
    """P4, P16."""
    running.guest.fault("test", ZeroDivisionError("ours"))
    await running.until(Runstate.CRASHED)
    assert running.guest.status("web1").reason == "fault"
    assert "ours" in caplog.text


async def test_destroy_without_a_vm_is_no_error(house: House) -> None:
    await house.guest.destroy()
    assert house.guest.state is Runstate.DEFINED


# -- waiting


async def test_wait_for_text_on_the_console(running: House, machines: list[FakeMachine]) -> None:
    waiting = asyncio.ensure_future(running.guest.wait("console:login:", 5))  # noqa: TID251
    machines[0].guest_prints(b"debian lo")
    machines[0].guest_prints(b"gin: ")
    await waiting


async def test_wait_ends_when_it_cannot_come(running: House, machines: list[FakeMachine]) -> None:
    waits = [running.guest.wait(what, 5) for what in ("devices", "console:login:")]
    pending = asyncio.gather(*waits, return_exceptions=True)
    machines[0].end("crash")
    for fault in await pending:
        assert isinstance(fault, StateError) and "will not come" in str(fault)


async def test_wait_times_out_and_names_what_is(running: House) -> None:
    with pytest.raises(TimedOut, match=r"devices has not come after 0.05 s: the guest is running"):
        await running.guest.wait("devices", 0.05)
    with pytest.raises(BadConfig, match="cannot wait for 'tea'"):
        await running.guest.wait("tea", 1)
    with pytest.raises(BadConfig):
        await running.guest.wait("console:", 1)


# -- drives


async def test_hot_add_answers_when_the_guest_is_connected(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    disk = image(tmp_path, "b.img")
    guest = running.guest
    adding = asyncio.gather(guest.drives.add(guest.running("add"), disk, True, 5))
    await event_named(running, "drive.added", "xvdb")
    ring = await machines[0].guest_disk(guest.xenstore.client, XVDB).connect()
    (added,) = await adding
    assert added.changed and added.connected_ms is not None
    assert added.drive.state == added.drive.frontend_state == "Connected"
    data = os.urandom(4096)
    await asyncio.to_thread(ring.write, 8, data)
    assert (tmp_path / "b.img").read_bytes()[4096:8192] == data

    again = await guest.drives.add(guest.running("add"), disk, True, 5)
    assert not again.changed
    with pytest.raises(Exists):
        other = disk.model_copy(update={"access": "ro"})
        await guest.drives.add(guest.running("add"), other, False, 1)


async def test_hot_add_that_nobody_takes_up_leaves_nothing(running: House, tmp_path: Path) -> None:
    disk = image(tmp_path, "b.img")
    guest = running.guest
    with pytest.raises(TimedOut, match=r"did not take up xvdb in 0.05 s"):
        await guest.drives.add(guest.running("add"), disk, True, 0.05)
    assert "xvdb" not in guest.drives.images and "xvdb" not in guest.running("look").drives
    assert not guest.xenstore.exists(f"/local/domain/1/device/vbd/{XVDB}")
    assert not guest.xenstore.exists(f"/local/domain/0/backend/vbd/1/{XVDB}")
    added = await guest.drives.add(guest.running("add"), disk, False, 1)  # its lock is free
    assert added.changed and added.connected_ms is None


async def test_one_number_by_two_names_is_one_disk(running: House, tmp_path: Path) -> None:
    disk = image(tmp_path, "b.img").model_copy(update={"vdev": "d0"})
    with pytest.raises(Exists, match="51712 is xvda"):
        await running.guest.drives.add(running.guest.running("add"), disk, False, 1)


async def test_remove(running: House, machines: list[FakeMachine], tmp_path: Path) -> None:
    guest = running.guest
    domain = guest.running("add")
    await guest.drives.add(domain, image(tmp_path, "b.img"), False, 1)
    front = machines[0].guest_disk(guest.xenstore.client, XVDB)
    await front.connect()
    with pytest.raises(TimedOut, match="still uses xvdb"):
        await guest.drives.remove(domain, "xvdb", force=False, missing_ok=False, timeout=0.05)
    assert "xvdb" in domain.drives
    removing = asyncio.gather(guest.drives.remove(domain, "xvdb", force=False, missing_ok=False, timeout=5))
    await front.wait_backend(XenbusState.Closing)
    front.switch(XenbusState.Closed)
    assert await removing == [True]
    assert "xvdb" not in domain.drives and "xvdb" not in guest.drives.images
    assert not await guest.drives.remove(domain, "xvdb", force=False, missing_ok=True, timeout=1)
    with pytest.raises(NotFound):
        await guest.drives.remove(domain, "xvdb", force=False, missing_ok=False, timeout=1)


def image(folder: Path, name: str) -> DiskConfig:
    (folder / name).write_bytes(bytes(1 << 20))
    return DiskConfig(vdev="xvdb", target=str(folder / name))


async def event_named(house: House, name: str, vdev: str) -> None:
    subscription, _, _ = house.events.subscribe((name,), since=0)
    try:
        async with asyncio.timeout(5):
            async for event in subscription:
                if event.data["vdev"] == vdev:
                    return
    finally:
        subscription.close()


# -- ends that meet something under way


async def test_destroy_while_several_disks_wait_to_be_taken_up(
    running: House, machines: list[FakeMachine], definition: GuestConfig, tmp_path: Path
) -> None:
    guest = running.guest
    domain = guest.running("add")
    disks = [
        image(tmp_path, f"{vdev}.img").model_copy(update={"vdev": vdev}) for vdev in ("xvdb", "xvdc", "xvdd")
    ]
    adding = asyncio.gather(
        *(guest.drives.add(domain, disk, True, 5) for disk in disks), return_exceptions=True
    )
    for disk in disks:
        await event_named(running, "drive.added", disk.vdev)
    await guest.destroy()
    assert all(isinstance(fault, XenpvdError) for fault in await adding)
    assert machines[0].closed and not guest.drives.images and guest.state is Runstate.STOPPED
    await guest.start(definition)  # nothing of the life before is in the way
    assert guest.state is Runstate.RUNNING


async def test_the_end_goes_on_when_who_asked_for_it_is_cancelled(
    running: House, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping, go_on = threading.Event(), threading.Event()

    def stop(machine: FakeMachine) -> None:
        stopping.set()
        assert go_on.wait(5)
        machine.stopped = True

    monkeypatch.setattr(FakeMachine, "stop", stop)
    destroying = asyncio.ensure_future(running.guest.destroy())  # noqa: TID251
    await in_thread(stopping.wait)
    destroying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await destroying
    assert running.guest.drives.images  # still in use
    go_on.set()
    await running.guest.close()
    assert machines[0].closed and not running.guest.drives.images


async def test_the_same_disk_added_by_many_at_once_is_added_once(running: House, tmp_path: Path) -> None:
    disk = image(tmp_path, "b.img")
    guest = running.guest
    added = await asyncio.gather(*(guest.drives.add(guest.running("add"), disk, False, 5) for _ in range(8)))
    assert sorted(one.changed for one in added) == [False] * 7 + [True]


async def test_storage_that_hangs_holds_up_only_its_own_add(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    real = Image.open

    def hang(path: str, **options: Any) -> Image:
        assert go_on.wait(5)
        return real(path, **options)

    monkeypatch.setattr("xenpvd.drives.Image.open", hang)
    guest = running.guest
    disk = image(tmp_path, "b.img")
    with pytest.raises(TimedOut, match="has not opened"):
        await guest.drives.add(guest.running("add"), disk, False, 0.05)
    await guest.destroy()
    assert guest.state is Runstate.STOPPED
    go_on.set()


async def test_after_a_reboot_phases_are_those_of_the_new_life(
    running: House, machines: list[FakeMachine]
) -> None:
    machines[0].owner.machine_log(b"(XEN) up\n")
    await running.guest.wait("shim", 5)
    await asyncio.gather(machines[0].guest_obeys_shutdown(), running.guest.shutdown("reboot", 5, "fail"))
    with pytest.raises(TimedOut):
        await running.guest.wait("shim", 0.05)


async def test_a_guest_is_not_restarted_on_a_disk_that_hangs(
    running: House, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(drive: object) -> None:
        raise TimedOut("its requests have not ended")

    monkeypatch.setattr("xenpvd.domain.BlockBackend.disconnect", hang)
    machines[0].end("reboot")
    await running.until(Runstate.CRASHED)
    assert running.guest.status("web1").reason == "not restarted: disk xvda hangs"
    assert machines[0].closed and not machines[0].released  # a write under way must not find zeros


async def test_a_start_whose_log_cannot_be_written_leaves_the_guest_as_it_was(
    house: House, definition: GuestConfig, machines: list[FakeMachine], tmp_path: Path
) -> None:
    """Also one that waits for its restart."""
    bad = definition.model_copy(
        update={"console": ConsoleConfig.model_validate({"log": str(tmp_path)}), "on_crash": "restart"}
    )
    with pytest.raises(HostError, match="cannot log console 0"):
        await house.guest.start(bad)
    assert house.guest.state == Runstate.DEFINED
    good = definition.model_copy(update={"on_crash": "restart"})
    await house.guest.start(good)
    for _ in range(3):  # until a restart is late
        machines[-1].end("crash")
        await house.until(Runstate.STARTING)
        if "restart in" in (house.reason or ""):
            break
        await house.until(Runstate.RUNNING)
    with pytest.raises(HostError, match="cannot log console 0"):
        await house.guest.start(bad)
    assert house.guest.state == Runstate.STOPPED
    await house.guest.start(good)
    assert house.guest.state == Runstate.RUNNING


# -- readiness


@pytest.mark.parametrize(
    "when", ["console:login:", "xenstore:data/up", "xenstore:/local/domain/1/data/up", "shim"]
)
async def test_ready_is_what_the_definition_says(
    house: House, definition: GuestConfig, machines: list[FakeMachine], when: str
) -> None:
    """In each life anew, and whatever else has come by then."""
    config = definition.model_copy(update={"ready": ReadyConfig(when=when)})
    await house.guest.start(config)
    for life in range(2):
        machine = machines[life]
        assert not house.guest.status("web1").ready
        if when == "shim":
            machine.owner.machine_log(b"(XEN) hello\n")
        elif when.startswith("console:"):
            machine.guest_prints(b"web1 login: ")
        else:
            assert await machine.guest_store().ask(11, b"data/up\x001") == b"OK\0"
        await house.guest.wait("ready", 5)
        assert house.guest.status("web1").ready
        assert not house.guest.progress.has_reached(Phase.DEVICES), "it implies nothing"
        if life == 0:
            await house.guest.pause()
            assert not house.guest.status("web1").ready
            await house.guest.reset()
    assert len([data for data in house.told("guest.boot") if data["phase"] == "ready"]) == 2


async def test_a_node_that_is_waited_for(running: House, machines: list[FakeMachine]) -> None:
    guest, store = running.guest, machines[0].guest_store()
    watches = len(guest.xenstore.client._watches)
    with pytest.raises(TimedOut, match="xenstore:data/x has not come"):
        await guest.wait("xenstore:data/x", 0.01)
    waiting = asyncio.ensure_future(guest.wait("xenstore:data/x", 5))  # noqa: TID251
    await asyncio.sleep(0)
    assert await store.ask(11, b"data/y\x001") == b"OK\0" and not waiting.done()
    assert await store.ask(11, b"data/x\x00") == b"OK\0"
    await waiting
    await guest.wait("xenstore:data/x", 5)
    await guest.wait("xenstore:/local", 5)
    assert len(guest.xenstore.client._watches) == watches


async def test_a_guest_that_ends_is_not_ready_any_more(running: House, machines: list[FakeMachine]) -> None:
    waiting = asyncio.ensure_future(running.guest.wait("xenstore:data/x", 5))  # noqa: TID251
    ready = asyncio.ensure_future(running.guest.wait("ready", 5))  # noqa: TID251
    await asyncio.sleep(0)
    machines[0].end("poweroff")
    for one in (waiting, ready):
        with pytest.raises(StateError, match="will not come"):
            await one
