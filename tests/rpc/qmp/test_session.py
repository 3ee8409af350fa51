"""Clients of every kind: each is answered as the specification has it, and harms itself only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from tests.rpc.qmp.conftest import Peer
from xenpvd import __version__
from xenpvd.events import QUEUE
from xenpvd.rpc.framing import MESSAGE_MAX
from xenpvd.rpc.qmp.server import QmpServer


@pytest.fixture
async def others_live(server: QmpServer, peer: Peer) -> Any:
    """After the case another client is served as ever."""
    yield
    assert await peer.execute("query-name") == {"name": "web1"}


async def test_greeting(server: QmpServer, path: Path) -> None:
    peer = await Peer.connect(path, greet=False)
    line = await peer.reader.readline()
    assert line.endswith(b"\r\n") and line.isascii()
    version = {"qemu": {"major": 9, "minor": 0, "micro": 0}, "package": f"xenpvd-{__version__}"}
    assert json.loads(line) == {"QMP": {"version": version, "capabilities": []}}
    await peer.close()


async def test_negotiation(server: QmpServer, path: Path) -> None:
    peer = await Peer.greeted(path)
    class_, desc = await peer.refused("query-status")
    assert class_ == "CommandNotFound" and "qmp_capabilities" in desc
    assert (await peer.refused("qmp_capabilities", enable=["oob"]))[0] == "GenericError"
    assert (await peer.refused("qmp_capabilities", more=1))[0] == "GenericError"
    assert (await peer.refused("query-status"))[0] == "CommandNotFound"
    assert await peer.execute("qmp_capabilities", enable=[]) == {}
    assert (await peer.execute("query-status"))["running"]
    assert (await peer.refused("qmp_capabilities"))[0] == "CommandNotFound"
    assert (await peer.execute("query-status"))["running"]
    await peer.close()


async def test_events_come_after_the_negotiation_only(
    server: QmpServer, path: Path, peer: Peer, service: FakeService
) -> None:
    silent = await Peer.greeted(path)
    await peer.execute("stop")
    await peer.event("STOP")
    await silent.refused("query-status")
    assert silent.events == []
    await silent.execute("qmp_capabilities")
    await peer.execute("cont")
    await silent.event("RESUME")
    await silent.close()


async def test_what_a_command_brings_about_is_told_before_its_reply(peer: Peer) -> None:
    """Scripts look for it without waiting."""
    for command, event in (("stop", "STOP"), ("cont", "RESUME")) * 20:
        peer.command(command)
        assert (await peer.receive())["event"] == event
        assert (await peer.receive()) == {"return": {}, "id": 1}


async def test_many_clients_see_every_event(server: QmpServer, path: Path, peer: Peer) -> None:
    others = [await Peer.negotiated(path) for _ in range(5)]
    await others[0].execute("stop")
    for client in (peer, *others):
        await client.event("STOP")
    for client in others:
        await client.close()


@pytest.mark.parametrize("id_", [None, 0, "x", {"a": [1]}, [], True, 1.5])
async def test_any_id_comes_back(peer: Peer, id_: Any) -> None:
    peer.command("query-name", id_=id_)
    assert await peer.reply() == {"return": {"name": "web1"}, "id": id_}
    peer.command("nonsense", id_=id_)
    assert (await peer.reply())["id"] == id_


async def test_without_id_and_arguments(peer: Peer) -> None:
    peer.send(b'{"execute":"query-name"}')
    assert await peer.reply() == {"return": {"name": "web1"}}
    peer.send(b'{"execute":"query-name","arguments":{}}\r\n')
    assert await peer.reply() == {"return": {"name": "web1"}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"garbage\n", "cannot parse"),
        (b'{"execute":}', "cannot parse"),
        (b"{'execute':'stop'}", "cannot parse"),
        (b'{"execute":"stop","id":NaN}', "cannot parse"),
        (b'{"execute":"stop","id":1e400}', "cannot parse"),
        (b'{"execute":"stop","execute":"cont"}', "a key is there twice"),
        (b'{"execute":"stop","id":"\xff"}', "cannot parse"),
        (b"[" * 100 + b"]" * 100, "cannot parse"),
        (b'[{"execute":"stop"},{"execute":"cont"}]', "it must be an object"),
        (b"[]", "it must be an object"),
        (b"3\n", "it must be an object"),
        (b"{}", "execute must be"),
        (b'{"execute":["stop"]}', "execute must be"),
        (b'{"exec-oob":"stop"}', "oob"),
        (b'{"execute":"stop","params":{}}', "no member 'params'"),
        (b'{"execute":"stop","arguments":[]}', "arguments must be"),
        (b'{"execute":"stop","arguments":null}', "arguments must be"),
        (b'{"execute":"stop","arguments":{"x":1}}', "cannot call stop: x: there is no such key"),
        (b'{"jsonrpc":"2.0","method":"guest.pause","id":1}', "no member 'jsonrpc'"),
    ],
)
async def test_bad_requests_do_nothing(peer: Peer, service: FakeService, data: bytes, says: str) -> None:
    peer.send(data)
    error = (await peer.reply())["error"]
    assert error["class"] == "GenericError" and says in error["desc"]
    assert await peer.execute("query-name")
    assert service.done == []


async def test_unknown_commands_say_where_to_go(peer: Peer) -> None:
    assert await peer.refused("balloon", value=1) == (
        "CommandNotFound",
        "there is no command 'balloon' here. By rpc.sock, memory.set_target does it.",
    )
    assert "query-commands" in (await peer.refused("x" * 500))[1]
    assert "xenpvctl" in (await peer.refused("human-monitor-command", **{"command-line": "info block"}))[1]


async def test_a_fault_of_ours_is_told_by_its_incident(peer: Peer, service: FakeService) -> None:
    service.faults["guest_status"] = RuntimeError("secret")
    class_, desc = await peer.refused("query-status")
    assert class_ == "GenericError" and "incident" in desc and "secret" not in desc


async def test_a_message_without_end(server: QmpServer, path: Path, others_live: None) -> None:
    peer = await Peer.negotiated(path)
    peer.send(b'{"execute":"' + b"x" * MESSAGE_MAX)
    assert "more than 1048576 bytes" in (await peer.reply())["error"]["desc"]
    assert await peer.receive() is None
    await peer.close()


async def test_a_large_message_is_one(peer: Peer) -> None:
    peer.send(b'{"execute":"query-name","id":"' + b"x" * (MESSAGE_MAX - 40) + b'"}')
    assert len((await peer.reply())["id"]) == MESSAGE_MAX - 40


async def test_half_close_is_answered(server: QmpServer, path: Path, service: FakeService) -> None:
    peer = await Peer.greeted(path)
    gate = service.hold("guest_pause")
    peer.command("qmp_capabilities")
    peer.command("stop", id_=2)
    peer.writer.write_eof()
    await gate.entered.wait()
    gate.open.set()
    assert await peer.reply() == {"return": {}, "id": 1}
    assert await peer.reply() == {"return": {}, "id": 2}
    while await peer.receive() is not None:
        pass
    await peer.close()
    await until(lambda: not server._connections)


async def test_half_a_message_and_gone(server: QmpServer, path: Path, others_live: None) -> None:
    before = len(server._connections)
    peer = await Peer.negotiated(path)
    peer.send(b'{"execute":"st')
    await peer.close()
    await until(lambda: len(server._connections) == before)


async def test_commands_run_in_their_order_and_an_effect_outlives_its_client(
    server: QmpServer, path: Path, service: FakeService, others_live: None
) -> None:
    peer = await Peer.negotiated(path)
    gate = service.hold("guest_pause")
    peer.command("stop", id_=1)
    peer.command("query-name", id_=2)
    await gate.entered.wait()
    await peer.close()
    gate.open.set()
    await until(lambda: service.done == ["guest_pause"])
    await until(lambda: len(server._connections) == 1)


async def test_a_flood_is_answered_in_order(peer: Peer) -> None:
    async def flood() -> None:
        for n in range(5000):
            peer.command("query-status" if n % 2 else "no-such", id_=n)
            await peer.writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(flood())
        assert [(await peer.reply())["id"] for _ in range(5000)] == list(range(5000))


async def test_a_client_that_never_reads_is_held_back(
    server: QmpServer, path: Path, others_live: None
) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        deaf.connect(str(path))
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 64 << 20:
                sent += deaf.send(b'{"execute":"qmp_capabilities"}' * 100)
                await asyncio.sleep(0)
    await until(lambda: len(server._connections) == 1)


async def test_who_has_missed_events_is_cut_off(
    server: QmpServer, path: Path, peer: Peer, others_live: None
) -> None:
    """QMP has no word for it, and who waits for the one that is missing shall not wait for ever."""
    deaf = await Peer.negotiated(path)
    deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: len(server._monitor.events._subscriptions) == 2)
    for n in range(20 * QUEUE):
        server._monitor.tell("STOP" if n % 2 else "RESUME")
        if n % 100 == 0:
            assert await peer.execute("query-name") == {"name": "web1"}
    deaf.reader._transport.resume_reading()  # type: ignore[attr-defined]
    with contextlib.suppress(ConnectionResetError):
        while await deaf.receive() is not None:
            pass
    await until(lambda: len(server._connections) == 1)
    await deaf.close()
