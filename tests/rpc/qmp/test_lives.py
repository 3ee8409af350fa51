"""Over the real service and a guest's lives: what a program written for QEMU waits for does come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from tests.rpc.qmp.conftest import Peer
from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.config import GuestConfig
from xenpvd.jobs import Jobs
from xenpvd.rpc.errors import fault_of
from xenpvd.rpc.qmp.server import QmpServer
from xenpvd.service import Service

XVDB = 51728


@pytest.fixture
def daemon(house: House, definition: GuestConfig) -> Any:
    return SimpleNamespace(
        name="web1",
        events=house.events,
        jobs=Jobs(house.events.publish, fault_of),
        config=definition,
        as_run=lambda config: config,
        info=None,
        quit=lambda guest: house._on_end(),
        reload=None,
    )


@pytest.fixture
async def peer(house: House, daemon: Any, path: Path) -> AsyncIterator[Peer]:
    server = QmpServer(Service(house.guest, daemon), path)
    await server.start()
    peer = await Peer.negotiated(path)
    yield peer
    await peer.close()
    await server.stop()


async def test_prelaunch_cont_stop_cont(house: House, peer: Peer, machines: list[FakeMachine]) -> None:
    assert await peer.execute("query-status") == {"status": "prelaunch", "running": False}
    assert await peer.execute("cont") == {}
    assert await peer.execute("query-status") == {"status": "running", "running": True}
    assert UUID((await peer.execute("query-uuid"))["UUID"]).version == 4
    assert [cpu["cpu-index"] for cpu in await peer.execute("query-cpus-fast")] == [0]
    await peer.execute("stop")
    assert machines[0].paused
    assert (await peer.refused("system_powerdown"))[1].endswith("resume it first.")
    await peer.execute("cont")
    assert [event["event"] for event in peer.events] == ["STOP", "RESUME"]


async def test_a_disk_comes_and_goes(
    running: House, peer: Peer, machines: list[FakeMachine], image: Path
) -> None:
    await peer.execute("blockdev-add", driver="file", filename=str(image), **{"node-name": "n0"})
    await peer.execute("device_add", driver="xen-disk", id="d", vdev="xvdb", drive="n0")
    front = machines[0].guest_disk(running.guest.xenstore.client, XVDB)
    await front.connect()
    assert [disk["qdev"] for disk in await peer.execute("query-block")] == ["xvda", "d"]
    await peer.execute("block_resize", size=16384, **{"node-name": "n0"})
    assert image.stat().st_size == 16384
    await peer.execute("stop")
    assert "resume it first" in (await peer.refused("device_del", id="d"))[1]
    await peer.execute("cont")
    assert await peer.execute("device_del", id="d") == {}
    assert "asked already" in (await peer.refused("device_del", id="d"))[1]
    await front.wait_backend(XenbusState.Closing)
    front.switch(XenbusState.Closed)
    assert [event["event"] for event in peer.events] == ["STOP", "RESUME"]
    peer.events.clear()
    assert await peer.event("DEVICE_DELETED") == {"device": "d", "path": "/machine/peripheral/d"}
    await peer.execute("blockdev-del", **{"node-name": "n0"})
    assert [disk["qdev"] for disk in await peer.execute("query-block")] == ["xvda"]


async def test_a_guest_that_keeps_its_disk(
    running: House, peer: Peer, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    await machines[0].guest_disk(running.guest.xenstore.client, 51712).connect()
    monkeypatch.setattr("xenpvd.rpc.qmp.block.UNPLUG_TIME", 0.05)
    await peer.execute("device_del", id="xvda")
    assert (await peer.event("DEVICE_UNPLUG_GUEST_ERROR"))["device"] == "xvda"
    assert len(await peer.execute("query-block")) == 1


async def test_powerdown(running: House, peer: Peer, machines: list[FakeMachine]) -> None:
    assert await peer.execute("system_powerdown") == {}
    store = machines[0].guest_store()
    assert await store.ask(2, b"control/shutdown\0") == b"poweroff"
    await store.ask(11, b"control/shutdown\0")
    assert await peer.event("POWERDOWN") is None
    machines[0].end("poweroff")
    assert await peer.event("SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    assert await peer.execute("query-status") == {"status": "shutdown", "running": False}


async def test_reset_and_reboot(running: House, peer: Peer, machines: list[FakeMachine]) -> None:
    await peer.execute("system_reset")
    assert await peer.event("RESET") == {"guest": False, "reason": "host-qmp-system-reset"}
    machines[1].end("reboot")
    assert await peer.event("RESET") == {"guest": True, "reason": "guest-reset"}


async def test_a_panic(running: House, peer: Peer, machines: list[FakeMachine]) -> None:
    machines[0].end("crash", "it said so")
    assert await peer.event("GUEST_PANICKED") == {"action": "poweroff"}
    assert await peer.event("SHUTDOWN") == {"guest": True, "reason": "guest-panic"}
    assert (await peer.execute("query-status"))["status"] == "guest-panicked"


async def test_quit(running: House, peer: Peer, machines: list[FakeMachine]) -> None:
    await peer.execute("quit")
    assert machines[0].closed and running.over
    assert await peer.event("SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}


async def test_xen_events(running: House, peer: Peer, machines: list[FakeMachine]) -> None:
    port = (await peer.execute("xen-event-list"))[0]["port"]
    await peer.execute("xen-event-inject", port=port)
    assert machines[0].injected == [port]
