"""Descriptors that clients send, as they should and as they should not. None may stay behind."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer, until
from xenpvd.rpc.http import HttpServer
from xenpvd.rpc.qmp.server import QmpServer
from xenpvd.rpc.server import RpcServer
from xenpvd.views import DescriptorInfo


class Sender:
    """A client whose bytes go with descriptors."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        number = peer.writer.get_extra_info("socket").fileno()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(number))

    def send(self, data: bytes, fds: list[int]) -> None:
        """The transport's buffer is empty, so it is in its turn."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self._socket.sendmsg([data], rights) == len(data)

    def call(self, fds: list[int], name: str = "root", id_: Any = 1) -> None:
        self.send(call(name, id_), fds)

    async def reply(self) -> Any:
        return await self.peer.receive()

    async def reason(self) -> str:
        fault = (await self.reply())["error"]
        return f"{fault['data']['reason']}: {fault['message']}"

    def close(self) -> None:
        self._socket.close()


def call(name: str = "root", id_: Any = 1, method: str = "fd.add") -> bytes:
    message = {"jsonrpc": "2.0", "method": method, "params": {"name": name}, "id": id_}
    return json.dumps(message).encode() + b"\n"


@pytest.fixture
def sender(peer: Peer) -> Iterator[Sender]:
    sender = Sender(peer)
    yield sender
    sender.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "a.img").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "a.img", os.O_RDWR)
    yield fd
    os.close(fd)


def open_of(image: int) -> int:
    """How many descriptors of that file this process has; it is both ends."""
    path = os.readlink(f"/proc/self/fd/{image}")  # noqa: PTH115
    found = 0
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}") == path  # noqa: PTH115
    return found


NONE = "VALIDATION: cannot take a descriptor: none came with this call. Send it along"
MANY = "VALIDATION: cannot take a descriptor: more than one came with this call"


async def test_one_with_its_call(
    sender: Sender, peer: Peer, image: int, service: FakeService, tmp_path: Path
) -> None:
    sender.call([image])
    root = {
        "name": "root", "kind": "file", "access": "rw", "size": 4096, "drives": [],
        "path": f"{tmp_path}/a.img",
    }  # fmt: skip
    assert (await sender.reply())["result"] == {"descriptor": root, "changed": True}
    sender.call([image])
    assert (await sender.reply())["result"]["changed"] is False
    assert await peer.result("fd.list") == [root]
    assert await peer.result("fd.remove", name="root") == {"removed": True}
    assert await peer.result("fd.remove", name="root", missing_ok=True) == {"removed": False}
    assert (await peer.fault("fd.remove", name="root"))["data"]["reason"] == "NOT_FOUND"
    assert open_of(image) == 1


async def test_before_the_greeting_is_read(
    server: RpcServer, path: Path, image: int, service: FakeService
) -> None:
    """A client in a hurry: what it sends is there when it is accepted."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        socket.send_fds(sock, [call("a")], [image])
        socket.send_fds(sock, [call("b", method="daemon.pi"), call("c")], [image])
        await until(lambda: set(service.descriptors) == {"a", "c"})
    assert open_of(image) == 1


async def test_each_goes_with_its_own(sender: Sender, image: int, service: FakeService) -> None:
    """However the bytes are cut, and whatever is sent around it."""
    ping = b'{"jsonrpc":"2.0","method":"daemon.ping","id":0}\n'
    sender.send(ping, [])
    sender.send(call("a"), [image])
    sender.send(ping + call("b"), [image])
    sender.send(call("c")[:20], [])
    sender.send(call("c")[20:40], [image])
    sender.send(call("c")[40:] + ping, [])
    sender.send(b"  \n" + call("d") + b"\n\n", [image])
    sender.send(b"[" + call("e").strip() + b"," + ping.strip() + b"]\n", [image])
    replies = [await sender.reply() for _ in range(8)]
    assert all("error" not in reply for reply in replies), replies
    assert set(service.descriptors) == set("abcde")
    assert open_of(image) == 1


async def test_none(sender: Sender, peer: Peer) -> None:
    sender.call([])
    assert (await sender.reason()).startswith(NONE)


@pytest.mark.parametrize("count", [2, 3, 253])
async def test_more_than_one(sender: Sender, image: int, count: int) -> None:
    sender.call([image] * count)
    assert (await sender.reason()).startswith(MANY)
    assert open_of(image) == 1


async def test_more_than_one_in_pieces(sender: Sender, image: int) -> None:
    for at, byte in enumerate(call()):
        sender.send(bytes([byte]), [image] if at % 7 == 0 else [])
    assert (await sender.reason()).startswith(MANY)
    assert open_of(image) == 1


async def test_one_for_two_calls(sender: Sender, image: int, service: FakeService) -> None:
    """A batch has what came with it once."""
    sender.send(b"[" + call("a", 1).strip() + b"," + call("b", 2).strip() + b"]\n", [image])
    first, second = await sender.reply()
    assert first["result"]["changed"] and "none came" in second["error"]["message"]
    sender.send(call("c", 3) + call("d", 4), [image])
    replies = {reply["id"]: reply for reply in [await sender.reply(), await sender.reply()]}
    assert "none came" in replies[3]["error"]["message"] and "result" in replies[4]
    assert open_of(image) == 1


@pytest.mark.parametrize(
    "data",
    [
        b'{"jsonrpc":"2.0","method":"daemon.ping","id":1}\n',
        b'{"jsonrpc":"2.0","method":"fd.add","params":{"name":"a b"},"id":1}\n',
        b'{"jsonrpc":"2.0","method":"fd.add","params":{"name":"' + b"x" * 65 + b'"},"id":1}\n',
        b"no json\n",
        b"[]\n",
    ],
)
async def test_with_what_does_not_take_it(sender: Sender, peer: Peer, image: int, data: bytes) -> None:
    for _ in range(100):
        sender.send(data, [image, image])
        assert await sender.reply()
    assert (await peer.call("daemon.ping"))["id"] == 1
    assert open_of(image) == 1


async def test_with_a_message_that_is_never_finished(
    sender: Sender, peer: Peer, image: int, server: RpcServer
) -> None:
    sender.send(b'{"jsonrpc"', [image])
    for _ in range(300):
        sender.send(b" " * 3, [image, image])
        await asyncio.sleep(0)
    sender.close()
    await peer.close()
    await until(lambda: not server._connections)
    assert open_of(image) == 1


async def test_left_behind_by_who_has_gone(
    sender: Sender, peer: Peer, image: int, server: RpcServer, service: FakeService
) -> None:
    """More calls than are taken at once, held, and cancelled with the server."""
    gate = service.hold("fd_add")
    for number in range(40):
        sender.call([image], f"d{number}")
    await gate.entered.wait()
    await until(lambda: open_of(image) > 30)
    await server.stop()
    assert open_of(image) == 1


async def test_on_a_console(sender: Sender, peer: Peer, image: int, server: RpcServer) -> None:
    await peer.result("console.attach")
    for _ in range(10):
        sender.send(b"x", [image, image])
    sender.close()
    await peer.close()
    await until(lambda: not server._connections)
    assert open_of(image) == 1


async def test_no_room_for_it(sender: Sender, peer: Peer, image: int, request: pytest.FixtureRequest) -> None:
    """MSG_CTRUNC: the kernel has dropped it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 8  # noqa: PTH208
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        while True:
            try:
                fill.append(os.dup(image))
            except OSError:
                break
        sender.call([image])
        told = await sender.reply()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill:
            os.close(fd)
    assert told["error"]["data"]["reason"] == "HOST_IO" and "LimitNOFILE" in told["error"]["message"]
    sender.call([image])
    assert (await sender.reply())["result"]["changed"]


async def test_by_a_viewer(tmp_path: Path, image: int, service: FakeService) -> None:
    server = RpcServer(service, tmp_path / "ro", lambda peer: "viewer")
    await server.start()
    peer = await Peer.connect(tmp_path / "ro")
    sender = Sender(peer)
    sender.call([image])
    assert "you are viewer here, and that takes operator" in await sender.reason()
    assert open_of(image) == 1
    sender.close()
    await peer.close()
    await server.stop()


async def test_by_http_none_can_come(tmp_path: Path, image: int, service: FakeService) -> None:
    """Though http.sock is a unix socket, too. What was sent along is closed; fd.remove works."""

    def refused(reply: Any) -> None:
        assert reply["error"]["code"] == 1008
        assert reply["error"]["data"] == {
            "reason": "UNSUPPORTED", "feature": "descriptors", "hint": "rpc.sock"
        }  # fmt: skip
        assert "none can come by HTTP or WebSocket. Send it at rpc.sock" in reply["error"]["message"]

    path = tmp_path / "http.sock"
    door = HttpServer(service, path)
    await door.start()
    reader, writer = await asyncio.open_unix_connection(path)
    sock = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
    head = "POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(call())}\r\nConnection: close\r\n\r\n"
    socket.send_fds(sock, [head.encode() + call()], [image])
    refused(json.loads((await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")[2]))
    sock.close()
    writer.close()

    service.descriptors["data"] = DescriptorInfo("data", "file", "rw", 0)
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as web:
        async with web.ws_connect("/rpc") as ws:
            assert (await ws.receive_json(timeout=5))["method"] == "daemon.hello"
            await ws.send_str(call().decode())
            refused(await ws.receive_json(timeout=5))
            await ws.send_str(call("data", method="fd.remove").decode())
            assert (await ws.receive_json(timeout=5))["result"] == {"removed": True}
    assert service.descriptors == {} and open_of(image) == 1
    await door.stop()


@pytest.mark.parametrize("command", ["getfd", "add-fd"])
async def test_by_qmp(tmp_path: Path, image: int, service: FakeService, command: str) -> None:
    """The cure is named, and what came is closed."""
    server = QmpServer(service, tmp_path / "qmp")
    await server.start()
    peer = await Peer.connect(tmp_path / "qmp", greet=False)
    await peer.receive()
    sender = Sender(peer)
    for execute in ("qmp_capabilities", command):
        sender.send(json.dumps({"execute": execute}).encode(), [image])
        told = await sender.reply()
    assert "By rpc.sock, fd.add does it" in told["error"]["desc"]
    await until(lambda: open_of(image) == 1)
    sender.close()
    await peer.close()
    await server.stop()


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/dev/null", os.O_RDWR),
        lambda: os.open("/", os.O_PATH),
        lambda: socket.socket(socket.AF_UNIX).detach(),
    ],
)
async def test_whatever_it_is_it_is_closed(
    sender: Sender, service: FakeService, make: Callable[[], int]
) -> None:
    service.faults["fd_add"] = ValueError("broken")
    fd = make()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    sender.call([fd])
    assert (await sender.reason()).startswith("INTERNAL")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.close(fd)
