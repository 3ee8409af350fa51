"""The socket: how it appears, who gets in, how it goes."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from tests.rpc.qmp.conftest import Peer
from xenpvd.access import Role
from xenpvd.rpc.qmp.server import QmpServer
from xenpvd.rpc.session import CONNECTIONS_MAX


async def test_the_socket(server: QmpServer, path: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [entry.name for entry in tmp_path.iterdir()] == ["qmp.sock"]
    await server.stop()
    assert not list(tmp_path.iterdir())
    await server.stop()


async def test_too_many_clients(server: QmpServer, path: Path) -> None:
    peers = [await Peer.greeted(path) for _ in range(CONNECTIONS_MAX)]
    refused = await Peer.connect(path, greet=False)
    error = (await refused.receive())["error"]
    assert error["class"] == "GenericError" and "64 are connected" in error["desc"]
    assert await refused.receive() is None
    for peer in (refused, *peers):
        await peer.close()


async def test_stop_sends_the_last_events(
    server: QmpServer, path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon does: the guest ends, the last event is published, and then stop is called at once."""
    peer = await Peer.negotiated(path)
    service.events.publish("guest.state", from_="running", to="stopping", reason="poweroff")
    service.events.publish("guest.state", from_="stopping", to="stopped", reason="poweroff")
    monkeypatch.setattr("xenpvd.rpc.server.GRACE", 30)  # nobody waits for more
    async with asyncio.timeout(5):
        await server.stop()
    assert await peer.event("SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
    assert await peer.receive() is None
    assert not service.events._subscriptions
    await peer.close()


async def test_stop_gives_a_command_a_moment_to_answer(
    server: QmpServer, path: Path, service: FakeService
) -> None:
    peer = await Peer.negotiated(path)
    gate = service.hold("guest_pause")
    peer.command("stop")
    await gate.entered.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.stop())
        await until(lambda: not path.exists())
        gate.open.set()
    assert (await peer.reply())["return"] == {}
    assert await peer.receive() is None
    await peer.close()


async def test_stop_gives_up_what_goes_on_behind_a_reply(
    server: QmpServer, path: Path, service: FakeService
) -> None:
    peer = await Peer.negotiated(path)
    gate = service.hold("guest_shutdown")
    await peer.execute("system_powerdown")
    await server.stop()
    assert gate.left.is_set() and service.done == []
    await peer.close()


async def test_it_is_for_admins(service: FakeService, tmp_path: Path) -> None:
    roles: list[Role | None] = ["operator", "viewer", None, "admin"]
    server = QmpServer(service, tmp_path / "qmp.sock", lambda peer: roles.pop(0), 0o666)
    await server.start()
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "qmp.sock")
        assert "no role here" in json.loads(await reader.readline())["error"]["desc"]
        assert await reader.read() == b""
        writer.close()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "qmp.sock")
    assert "QMP" in json.loads(await reader.readline())
    writer.close()
    await server.stop()
