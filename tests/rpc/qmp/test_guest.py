"""The commands about the machine and its power."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from tests.rpc.qmp.conftest import Peer
from xenpvd.errors import StateError
from xenpvd.rpc.qmp.server import QmpServer
from xenpvd.views import Runstate


async def test_what_it_is(peer: Peer, service: FakeService) -> None:
    assert (await peer.execute("query-version"))["qemu"] == {"major": 9, "minor": 0, "micro": 0}
    assert await peer.execute("query-name") == {"name": "web1"}
    assert await peer.execute("query-kvm") == {"enabled": True, "present": True}
    assert await peer.execute("query-uuid") == {"UUID": "00000000-0000-0000-0000-000000000000"}
    service.xenstore.write("/local/domain/1/vm", "/vm/8c1f0e5e-7d1c-4f0e-9a51-0b7f8f5b6a11")
    assert await peer.execute("query-uuid") == {"UUID": "8c1f0e5e-7d1c-4f0e-9a51-0b7f8f5b6a11"}


async def test_every_command_is_listed(peer: Peer) -> None:
    names = [entry["name"] for entry in await peer.execute("query-commands")]
    assert names == sorted(names)
    assert {"qmp_capabilities", "query-commands", "device_add", "quit", "xen-event-inject"} <= set(names)
    for name in set(names) - {"qmp_capabilities"}:
        class_, desc = await peer.refused(name, **{"no-such": 1})
        assert class_ == "GenericError" and "no-such: there is no such key" in desc


@pytest.mark.parametrize(
    ("state", "status", "running"),
    [
        (Runstate.DEFINED, "prelaunch", False),
        (Runstate.RUNNING, "running", True),
        (Runstate.PAUSED, "paused", False),
        (Runstate.STOPPED, "shutdown", False),
        (Runstate.CRASHED, "guest-panicked", False),
    ],
)
async def test_status(peer: Peer, service: FakeService, state: Runstate, status: str, running: bool) -> None:
    service.state = state
    assert await peer.execute("query-status") == {"status": status, "running": running}


async def test_cpus(peer: Peer, service: FakeService) -> None:
    service.config = service.config.model_copy(update={"vcpus": 2})
    cpus = await peer.execute("query-cpus-fast")
    assert [cpu["cpu-index"] for cpu in cpus] == [0, 1]
    assert cpus[1] == {
        "cpu-index": 1,
        "qom-path": "/machine/cpu[1]",
        "thread-id": -1,
        "props": {"socket-id": 1, "core-id": 0, "thread-id": 0},
        "target": "x86_64",
    }
    service.state = Runstate.STOPPED
    assert "is stopped" in (await peer.refused("query-cpus-fast"))[1]


async def test_stop_and_cont(peer: Peer, service: FakeService) -> None:
    assert await peer.execute("stop") == {}
    assert await peer.event("STOP") is None
    assert service.state is Runstate.PAUSED
    assert await peer.execute("cont") == {}
    assert await peer.event("RESUME") is None
    assert await peer.execute("cont") == {}
    service.state = Runstate.CRASHED
    assert (await peer.refused("stop"))[0] == "GenericError"


async def test_cont_begins_a_guest_that_was_only_defined(peer: Peer, service: FakeService) -> None:
    service.state = Runstate.DEFINED
    assert await peer.execute("cont") == {}
    assert service.done == ["guest_start"]


async def test_powerdown_answers_at_once(peer: Peer, service: FakeService) -> None:
    gate = service.hold("guest_shutdown")
    assert await peer.execute("system_powerdown") == {}
    assert service.done == []
    gate.open.set()
    await until(lambda: service.done == ["guest_shutdown"])


async def test_powerdown_again_takes_the_place_of_the_first(peer: Peer, service: FakeService) -> None:
    gate = service.hold("guest_shutdown")
    await peer.execute("system_powerdown")
    await peer.execute("system_powerdown")
    await asyncio.wait_for(gate.left.wait(), 5)
    gate.open.set()
    await until(lambda: service.done == ["guest_shutdown"])


async def test_a_powerdown_that_cannot_be_is_refused(peer: Peer, service: FakeService) -> None:
    service.faults["guest_shutdown"] = StateError("cannot shut down: the guest is paused.", "paused", [])
    assert await peer.refused("system_powerdown") == (
        "GenericError",
        "cannot shut down: the guest is paused.",
    )


async def test_powerdowns_of_many_clients_are_all_answered(
    server: QmpServer, path: Path, service: FakeService
) -> None:
    service.hold("guest_shutdown")
    peers = [await Peer.negotiated(path) for _ in range(8)]
    for peer in peers:
        peer.command("system_powerdown")
    for peer in peers:
        assert await peer.reply() == {"return": {}, "id": 1}
        await peer.close()


async def test_reset(peer: Peer, service: FakeService) -> None:
    assert await peer.execute("system_reset") == {}
    assert service.done == ["guest_reset"]


async def test_quit_ends_the_guest_and_the_daemon(peer: Peer, service: FakeService) -> None:
    assert await peer.execute("quit") == {}
    assert service.done == ["guest_destroy", "daemon_quit destroy"] and service.quitting.is_set()


async def test_xen_events(peer: Peer, service: FakeService) -> None:
    assert (await peer.execute("xen-event-list"))[0] == {
        "port": 1,
        "vcpu": 0,
        "type": "interdomain",
        "remote-domain": "0",
        "target": 5,
        "pending": False,
        "masked": False,
    }
    assert await peer.execute("xen-event-inject", port=3) == {}
    assert service.ports[3].pending
    assert (await peer.refused("xen-event-inject", port=9))[0] == "GenericError"
    assert (await peer.refused("xen-event-inject", port="3"))[0] == "GenericError"
