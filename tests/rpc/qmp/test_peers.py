"""The other side as it is out there: the library qemu.qmp of the QEMU project, and its qmp-shell."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.fakes.service import FakeService
from xenpvd import __version__
from xenpvd.rpc.qmp.server import QmpServer
from xenpvd.views import Runstate


@pytest.fixture
async def client(server: QmpServer, path: Path) -> AsyncIterator[QMPClient]:
    client = QMPClient("tests")
    await client.connect(str(path))
    yield client
    await client.disconnect()


async def test_greeting(client: QMPClient) -> None:
    assert client.greeting is not None
    assert client.greeting.QMP.version["package"] == f"xenpvd-{__version__}"
    assert client.greeting.QMP.capabilities == []


async def test_commands_and_errors(client: QMPClient, service: FakeService) -> None:
    assert await client.execute("query-status") == {"status": "running", "running": True}
    with pytest.raises(ExecuteError, match="there is no command 'migrate'") as fault:
        await client.execute("migrate", {"uri": "tcp:host"})
    assert fault.value.error_class == "CommandNotFound"
    with pytest.raises(ExecuteError, match="no device 'x'") as fault:
        await client.execute("device_del", {"id": "x"})
    assert fault.value.error_class == "DeviceNotFound"
    with pytest.raises(ExecuteError, match="force: there is no such key"):
        await client.execute("stop", {"force": True})
    assert service.done == []


async def test_events(client: QMPClient, service: FakeService) -> None:
    with client.listener(("STOP", "RESUME", "SHUTDOWN")) as listener:
        await client.execute("stop")
        assert (await listener.get())["event"] == "STOP"
        await client.execute("cont")
        assert (await listener.get())["event"] == "RESUME"
        service.move(Runstate.STOPPING)
        service.move(Runstate.STOPPED)
        shutdown = await listener.get()
    assert shutdown["event"] == "SHUTDOWN"
    assert set(shutdown) == {"event", "data", "timestamp"}


async def test_a_disk(client: QMPClient, image: Path) -> None:
    with client.listener("DEVICE_DELETED") as deleted:
        await client.execute("blockdev-add", {"driver": "file", "node-name": "n0", "filename": str(image)})
        await client.execute("device_add", {"driver": "xen-disk", "id": "d", "vdev": "xvdb", "drive": "n0"})
        assert "'qdev': 'd'" in str(await client.execute("query-block"))
        await client.execute("device_del", {"id": "d"})
        assert (await deleted.get())["data"] == {"device": "d", "path": "/machine/peripheral/d"}
    await client.execute("blockdev-del", {"node-name": "n0"})


async def test_many_commands_at_once(client: QMPClient) -> None:
    replies = await asyncio.gather(*(client.execute("query-name") for _ in range(200)))
    assert replies == [{"name": "web1"}] * 200


async def test_the_daemon_ends(server: QmpServer, path: Path) -> None:
    client = QMPClient("tests")
    await client.connect(str(path))
    await server.stop()
    with pytest.raises(EOFError):
        await client.disconnect()


async def shell(path: Path, typed: str, *options: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "qemu.qmp.qmp_shell", *options, path,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(typed.encode()), 30)
    return said.decode()


async def test_the_shell(server: QmpServer, path: Path, service: FakeService, image: Path) -> None:
    said = await shell(
        path,
        "query-status\n"
        "stop\n"
        f"blockdev-add driver=file node-name=n0 filename={image}\n"
        "device_add driver=xen-disk id=data vdev=xvdb drive=n0\n"
        "device_add driver=xen-disk id=more vdev=xvdc drive=n0\n"
        "no-such-command\n",
    )
    assert "Connected to QEMU 9.0.0" in said
    assert "'status': 'running'" in said or '"status": "running"' in said
    assert "in use by data" in said and "CommandNotFound" in said
    assert service.state is Runstate.PAUSED and list(service.drives) == ["xvdb"]


async def test_the_shell_shows_events(server: QmpServer, path: Path) -> None:
    said = await shell(path, "stop\ncont\n\n\n")
    assert "STOP" in said and "RESUME" in said


async def test_the_shell_that_does_not_negotiate_is_told_how(server: QmpServer, path: Path) -> None:
    said = await shell(path, "query-name\nqmp_capabilities\nquery-name\n", "-N")
    assert said.index("the first command must be qmp_capabilities") < said.index('"name": "web1"')
