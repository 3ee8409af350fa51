"""The socket: how it appears, who gets in, how it goes."""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer, until
from xenpvd.access import Role
from xenpvd.errors import HostError
from xenpvd.figures import RpcCall, RpcStats
from xenpvd.rpc.server import RpcServer
from xenpvd.rpc.session import CONNECTIONS_MAX, RESERVED


async def test_the_socket(server: RpcServer, path: Path, tmp_path: Path) -> None:
    """N20."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [entry.name for entry in tmp_path.iterdir()] == ["rpc.sock"]
    await server.stop()
    assert not list(tmp_path.iterdir())
    await server.stop()


async def test_it_listens_before_it_has_its_name(
    service: FakeService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    rename = Path.rename

    def spy(self: Path, target: Path) -> Path:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self))
        seen.append(stat.S_IMODE(self.stat().st_mode))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    server = RpcServer(service, path)
    await server.start()
    await server.stop()
    assert seen == [0o660]


async def test_stale_sockets_are_replaced(service: FakeService, path: Path) -> None:
    """N21."""
    for name in (path, path.with_suffix(".new")):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(name))
    server = RpcServer(service, path)
    await server.start()
    peer = await Peer.connect(path)
    assert (await peer.call("daemon.ping"))["id"] == 1
    await peer.close()
    await server.stop()


@pytest.mark.parametrize("name", ["missing/rpc.sock", "x" * 200 + "/rpc.sock"])
async def test_a_place_that_cannot_be(service: FakeService, tmp_path: Path, name: str) -> None:
    """N21."""
    with pytest.raises(HostError, match="cannot listen at"):
        await RpcServer(service, tmp_path / name).start()


async def test_too_many_clients(server: RpcServer, path: Path, service: FakeService) -> None:
    """N12."""
    peers = [await Peer.connect(path) for _ in range(CONNECTIONS_MAX)]
    refused = await Peer.connect(path, greet=False)
    assert (await refused.receive())["error"]["data"] == {"reason": "LIMIT", "limit": CONNECTIONS_MAX}
    assert await refused.receive() is None
    await refused.close()
    await peers.pop().close()
    await until(lambda: len(server._connections) < CONNECTIONS_MAX)
    peers.append(await Peer.connect(path))
    assert (await peers[-1].call("daemon.ping"))["id"] == 1
    for peer in peers:
        await peer.close()
    await until(lambda: not server._connections)
    assert service.calls.view() == RpcStats(0, CONNECTIONS_MAX + 1, (RpcCall("daemon.ping", 0, 1),))


async def test_stop_flushes_replies_and_ends_waits(
    server: RpcServer, path: Path, service: FakeService
) -> None:
    peer = await Peer.connect(path)
    waiting, adding = service.hold("guest_wait"), service.hold("drive_add")
    peer.request("guest.wait", id_="wait", **{"for": "stopped"})
    peer.request("drive.add", id_="add", vdev="xvdb", target="/b")
    await waiting.entered.wait()
    await adding.entered.wait()
    asyncio.get_running_loop().call_soon(adding.open.set)
    await server.stop()
    assert (await peer.receive())["id"] == "add", "an effect gets a moment to answer"
    assert await peer.receive() is None
    assert service.done == ["drive_add"]
    await peer.close()


async def test_stop_sends_the_last_words(server: RpcServer, path: Path, service: FakeService) -> None:
    """As the daemon does: the console ends, the last event is published, and then stop is called at once."""
    watcher, viewer = await Peer.connect(path), await Peer.connect(path)
    await watcher.result("events.subscribe", names=["daemon.*"])
    await viewer.result("console.attach")
    service.console.print(b"reboot: Power down")
    service.console.close()
    service.events.publish("daemon.stopping")
    await server.stop()
    assert await viewer.reader.read() == b"reboot: Power down"
    assert (await watcher.receive())["params"]["name"] == "daemon.stopping"
    assert await watcher.receive() is None
    await watcher.close()
    await viewer.close()


async def test_stop_does_not_wait_for_ever(
    server: RpcServer, path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call that never ends, and one client that never reads."""
    monkeypatch.setattr("xenpvd.rpc.server.GRACE", 0.05)
    monkeypatch.setattr("xenpvd.rpc.link.GRACE", 0.05)
    peer = await Peer.connect(path)
    gate = service.hold("drive_add")
    peer.request("drive.add", vdev="xvdb", target="/b")
    await gate.entered.wait()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        deaf.connect(str(path))
        try:
            while True:
                deaf.send(b'{"jsonrpc":"2.0","method":"rpc.discover","id":1}\n')
                await asyncio.sleep(0)
        except BlockingIOError:
            pass
        async with asyncio.timeout(5):
            await server.stop()
    assert await peer.receive() is None
    await peer.close()


async def test_roles(service: FakeService, path: Path) -> None:
    roles: list[Role | None] = ["viewer", "operator", None]
    server = RpcServer(service, path, lambda peer: roles.pop(0), 0o666)
    await server.start()
    assert path.stat().st_mode & 0o777 == 0o666
    viewer = await Peer.connect(path, greet=False)
    assert (await viewer.note("daemon.hello"))["role"] == "viewer"
    assert await viewer.result("guest.status")
    fault = await viewer.fault("guest.pause", nonsense=1)
    assert (fault["code"], fault["data"]) == (
        1010,
        {"reason": "PERMISSION", "need": "operator", "role": "viewer"},
    )
    assert fault["message"].startswith(
        "cannot call guest.pause: you are viewer here, and that takes operator."
    )
    assert service.state == "running" and not service.done

    operator = await Peer.connect(path)
    await operator.result("guest.pause")
    assert (await operator.fault("daemon.quit"))["data"]["need"] == "admin"
    assert not service.quitting.is_set()

    nobody = await Peer.connect(path, greet=False)
    told = await nobody.receive()
    assert told["error"]["code"] == 1010 and "no role" in told["error"]["message"]
    assert await nobody.receive() is None
    for peer in (viewer, operator, nobody):
        await peer.close()
    await server.stop()


@pytest.mark.parametrize("mode", ["rw", "steal", "ro"])
async def test_a_viewer_has_no_keyboard(service: FakeService, path: Path, mode: str) -> None:
    server = RpcServer(service, path, lambda peer: "viewer")
    await server.start()
    peer = await Peer.connect(path)
    reply = await peer.call("console.attach", mode=mode)
    if mode == "ro":
        assert reply["result"]["mode"] == "ro"
        peer.send(b"unheard")
    else:
        assert reply["error"]["data"]["need"] == "operator" and not service.console.viewers
    await peer.close()
    await server.stop()
    assert not service.console.typed


async def test_places_are_kept_for_admins(service: FakeService, path: Path) -> None:
    role: Role = "viewer"
    server = RpcServer(service, path, lambda peer: role)
    await server.start()
    peers = [await Peer.connect(path) for _ in range(CONNECTIONS_MAX - RESERVED)]
    refused = await Peer.connect(path, greet=False)
    assert (await refused.receive())["error"]["data"]["reason"] == "LIMIT"
    role = "admin"
    peers += [await Peer.connect(path) for _ in range(RESERVED)]
    for peer in (refused, *peers):
        await peer.close()
    await server.stop()


async def test_no_file_for_a_client(
    server: RpcServer, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the next one is served."""

    def dup(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("xenpvd.rpc.server.os.dup", dup)
    refused = await Peer.connect(path, greet=False)
    fault = (await refused.receive())["error"]
    assert fault["data"]["reason"] == "HOST_IO" and "raise the limit (LimitNOFILE)" in fault["message"]
    assert await refused.receive() is None
    await refused.close()
    assert "is sent away" in caplog.text
    monkeypatch.undo()
    peer = await Peer.connect(path)
    assert (await peer.call("daemon.ping"))["id"] == 1
    await peer.close()
