"""What is counted, on a real guest with its store, consoles and disks, and a machine without KVM."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd import stats
from xenpvd.config import ConsoleConfig, GuestConfig, MetricsConfig
from xenpvd.counts import Calls, Durations
from xenpvd.figures import GuestStats, VcpuStats
from xenpvd.rpc.metrics import exposition
from xenpvd.tasks import in_thread
from xenpvd.views import DaemonInfo, HypercallCount, Runstate

DAEMON = DaemonInfo("web1", "0.1.0", "1.6", os.getpid(), "e", 1000.0, "asyncio", ())


async def of(house: House) -> GuestStats:
    return await stats.of(house.guest, DAEMON, house.events, Calls(), Durations())


async def test_before_there_is_a_guest(house: House) -> None:
    told = await of(house)
    assert (told.state, told.uptime, told.boots, told.memory) == (Runstate.DEFINED, None, 0, None)
    assert told.vcpus == told.hypercalls == told.drives == () and told.ports == {}
    assert [console.console for console in told.consoles] == ["0", "xen"]
    assert told.process.resident > 1 << 20 and told.process.fds > 3 and told.process.cpu_seconds > 0
    assert exposition(told)


async def test_a_guest_that_runs(running: House, machines: list[FakeMachine]) -> None:
    machines[0].guest_onlines([0])
    machines[0].guest_balloons(256)
    told = await of(running)
    assert (told.name, told.version, told.state, told.boots) == ("web1", "0.1.0", "running", 1)
    assert told.uptime is not None and told.memory is not None
    assert (told.memory.ram, told.memory.ballooned, told.memory.resident) == (128 << 20, 1 << 20, 64 << 20)
    assert told.vcpus == (VcpuStats(0, True, "running", 1.5, 0.25, {"hypercall": 31, "io": 19}),)
    assert told.hypercalls == (HypercallCount("sched_op yield", 31, {"ok": 31}),)
    assert told.ports == {"interdomain": 2} and told.grants_mapped == 0 and told.xen_log_lost == 7
    assert told.process.started == 1000.0
    assert told.events.published == running.events.seq > 0
    assert list(told.boot_times) == ["created"]


async def test_a_disk_counts_and_takes_its_time(running: House, machines: list[FakeMachine]) -> None:
    ring = await machines[0].guest_disk(running.guest.xenstore.client, 51712).connect()
    await in_thread(lambda: ring.write(0, bytes(8 * 512)))
    for _ in range(3):
        await in_thread(lambda: ring.read(0, 16))
    assert await in_thread(ring.flush) == 0
    (disk,) = (await of(running)).drives
    assert disk.requests == {"read": 3, "write": 1, "flush": 1, "discard": 0}
    assert disk.bytes == {"read": 3 * 8192, "write": 4096}
    assert (disk.vdev, disk.errors, disk.throttled, disk.in_flight) == ("xvda", 0, 0, 0)
    assert sum(disk.latency.counts) == 5 and 0 < disk.latency.sum < 60


async def test_a_disk_that_was_never_connected(running: House) -> None:
    (disk,) = (await of(running)).drives
    assert disk.requests == {"read": 0, "write": 0, "flush": 0, "discard": 0}
    assert sum(disk.latency.counts) == 0


async def test_consoles_count_both_ways(running: House, machines: list[FakeMachine]) -> None:
    machines[0].guest_prints(b"login: ")
    await running.guest.wait("console:login", 5)
    await running.guest.consoles.main.type(b"root\n")
    viewer = running.guest.consoles.attach("0", "ro", None, None, "me")
    main = (await of(running)).consoles[0]
    assert (main.output, main.input, main.viewers, main.log_lost) == (7, 5, 1, 0)
    viewer.close()
    assert (await of(running)).consoles[0].viewers == 0


async def test_the_store(running: House, machines: list[FakeMachine]) -> None:
    before = (await of(running)).xenstore
    guest = machines[0].guest_store()
    assert await guest.ask(2, b"domid\0") == b"1"
    assert await guest.ask(2, b"no\0") == "ENOENT"
    assert await guest.ask(4, b"data\0t\0") == b"OK\0"
    await guest.event()
    assert await guest.ask(11, b"data/x\0value") == b"OK\0"
    await guest.event()
    after = (await of(running)).xenstore

    def grown(operation: str, result: str) -> int:
        counts = [
            sum(each.count for each in store.requests if (each.operation, each.result) == (operation, result))
            for store in (before, after)
        ]
        return counts[1] - counts[0]

    assert grown("READ", "OK") == grown("READ", "ENOENT") == grown("WATCH", "OK") == grown("WRITE", "OK") == 1
    assert after.watch_events - before.watch_events >= 2
    assert after.nodes == before.nodes + 1
    used = {quota.name: quota.used for quota in after.quotas}
    assert used["watches"] == 1 and used["nodes"]
    assert after.connections == before.connections >= 2


async def test_another_life_and_the_definition(
    house: House, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    labels = {"tenant": "blue"}
    config = definition.model_copy(update={"metrics": MetricsConfig(labels=labels)})
    await house.guest.start(config)
    await house.guest.reset()
    told = await of(house)
    assert told.boots == 2 and told.labels == labels
    await house.guest.destroy()
    told = await of(house)
    assert (told.state, told.boots, told.memory, told.vcpus) == ("stopped", 2, None, ())
    assert told.hypercalls, "of the last life"
    assert 'guest="web1",tenant="blue"' in exposition(told)


async def test_a_life_that_ends_while_it_is_looked_at(
    running: House, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, go = asyncio.Event(), asyncio.Event()

    async def info(domain: object) -> object:
        looking.set()
        await go.wait()
        return await asked(domain)

    asked = running.guest.balloon.info
    monkeypatch.setattr(running.guest.balloon, "info", info)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(of(running))
        await looking.wait()
        await running.guest.destroy()
        go.set()
    told = task.result()
    assert (told.state, told.memory, told.vcpus, told.drives) == ("stopped", None, (), ())


async def test_what_a_log_has_lost(house: House, tmp_path: Path) -> None:
    consoles = house.guest.consoles
    await consoles.configure(ConsoleConfig(history=4096, log=str(tmp_path / "console.log")))
    for _ in range(2):  # the second time it was told already
        consoles.main.record(b"a" * 5000)
        await house.event("console.log")
        async with asyncio.timeout(5):
            while (tmp_path / "console.log").read_bytes()[-4096:] != b"a" * 4096:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert (await of(house)).consoles[0].log_lost >= 904
