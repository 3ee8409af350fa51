"""The first moment of a connection, and what is no JSON-RPC."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import HELLO, Daemon, impostor, until
from xenpvd.client.errors import ConnectionLost, Unreachable
from xenpvd.client.wire import LINE_MAX, Wire
from xenpvd.errors import BadConfig, LimitReached, PermissionRefused, Unsupported
from xenpvd.rpc.session import CONNECTIONS_MAX


def says(*words: bytes, gate: asyncio.Event | None = None) -> Any:
    """A server that says so, and leaves; before that it waits for ``gate``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for word in words:
            writer.write(word)
            await writer.drain()
        if gate is not None:
            await gate.wait()

    return serve


async def test_the_greeting(daemon: Daemon, path: Path) -> None:
    wire = await Wire.open(path, 5)
    assert (wire.hello["guest"], wire.hello["epoch"]) == ("web1", daemon.service.events.epoch)
    assert (await wire.ask("daemon.ping", {}))["epoch"] == daemon.service.events.epoch
    assert not wire.ended
    await wire.close()
    assert wire.ended


async def test_a_newer_minor_greets_in_pieces(path: Path) -> None:
    gate = asyncio.Event()
    async with impostor(path, says(HELLO[:20], HELLO[20:], gate=gate)):
        wire = await Wire.open(path, 5)
        assert wire.hello["api"] == "1.99"
        await wire.close()
        gate.set()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "the daemon ended it"),
        ([b"220 mail.example ESMTP\r\n"], "no JSON-RPC"),
        ([b"[]\n"], "no JSON-RPC"),
        ([b"[" * 100_000 + b"\n"], "no JSON-RPC"),
        ([b'{"jsonrpc":"2.0","method":"event","params":{}}\n'], "does not greet as xenpvd does"),
        ([HELLO.replace(b"1000", b'"many"')], "does not greet as xenpvd does"),
        ([b'{"error":7}\n'], "without code or message"),
    ],
)
async def test_who_is_no_daemon(path: Path, words: list[bytes], why: str) -> None:
    async with impostor(path, says(*words)):
        with pytest.raises(Unreachable, match=why):
            await Wire.open(path, 5)


async def test_another_major(path: Path) -> None:
    async with impostor(path, says(HELLO.replace(b"1.99", b"2.0"))):
        with pytest.raises(Unsupported, match=r"speaks the API 2\.0, this client 1\.x"):
            await Wire.open(path, 5)


async def test_no_greeting_in_time(path: Path) -> None:
    gate = asyncio.Event()
    async with impostor(path, says(gate=gate)):
        with pytest.raises(Unreachable, match=r"does not answer within 0\.05 s"):
            await Wire.open(path, 0.05)
        gate.set()


async def test_nobody_there(path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    await daemon.stop()
    with pytest.raises(Unreachable, match="it is missing"):
        await Wire.open(path, 5)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with pytest.raises(Unreachable, match="its daemon is dead"):
        await Wire.open(path, 5)

    async def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")  # tests may run as root

    monkeypatch.setattr("asyncio.open_unix_connection", refuse)
    with pytest.raises(PermissionRefused, match="join the group"):
        await Wire.open(path, 5)


async def test_too_many_clients(daemon: Daemon, path: Path) -> None:
    wires = [await Wire.open(path, 5) for _ in range(CONNECTIONS_MAX)]
    with pytest.raises(LimitReached, match="64 are connected"):
        await Wire.open(path, 5)
    for wire in wires:
        wire.abort()
    await until(lambda: daemon.connections == 0)


async def test_a_line_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LINE_MAX >= 16 << 20  # a tree of xenstore has many
    monkeypatch.setattr("xenpvd.client.wire.LINE_MAX", 1 << 17)
    async with impostor(path, says(HELLO, b'"' + b"a" * (1 << 18))):
        wire = await Wire.open(path, 5)
        with pytest.raises(ConnectionLost, match="has no end"):
            await wire.receive()
        await wire.close()


async def test_waiting_may_be_cancelled(path: Path) -> None:
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + b'{"a":')
        await gate.wait()
        writer.write(b"1}\n")

    async with impostor(path, serve):
        wire = await Wire.open(path, 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.receive(), 0.02)
        gate.set()
        assert await wire.receive() == {"a": 1}
        await wire.close()


async def test_what_the_daemon_could_not_match_to_its_request(daemon: Daemon, path: Path) -> None:
    wire = await Wire.open(path, 5)
    for params in ({"since": float("nan")}, {"text": "\ud800"}):
        with pytest.raises(BadConfig, match=r"cannot call a\.b"):
            wire.encode("a.b", params, 1)
    with pytest.raises(BadConfig, match="1048576 are allowed"):
        wire.encode("a.b", {"text": "x" * (1 << 20)}, 1)
    await wire.close()


async def test_what_was_sent_is_taken_before_the_end(path: Path) -> None:
    gate, taken = asyncio.Event(), bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await gate.wait()
        while data := await reader.read(65536):
            taken.extend(data)

    async with impostor(path, serve):
        wire = await Wire.open(path, 5)
        wire.send(b"x" * (1 << 20))  # more than lies in the sockets
        asyncio.get_running_loop().call_soon(gate.set)
        await wire.close()
        await until(lambda: len(taken) == 1 << 20)


async def test_who_does_not_take_it_keeps_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenpvd.client.wire.GRACE", 0.05)
    gate = asyncio.Event()
    async with impostor(path, says(HELLO, gate=gate)):
        wire = await Wire.open(path, 5)
        wire.send(b"x" * (1 << 20))
        await asyncio.wait_for(wire.close(), 5)
        gate.set()


async def test_by_another_name(daemon: Daemon, path: Path, tmp_path: Path) -> None:
    """Faults are told by the name that people know."""
    (tmp_path / "other").symlink_to(path)
    wire = await Wire.open(tmp_path / "known", 5, tmp_path / "other")
    assert wire.path == tmp_path / "known"
    await wire.close()
    with pytest.raises(Unreachable, match=f"cannot reach {tmp_path}/known: it is missing"):
        await Wire.open(tmp_path / "known", 5, tmp_path / "missing")


async def test_the_end_of_input_is_not_that_of_answers(daemon: Daemon, path: Path) -> None:
    wire = await Wire.open(path, 5)
    wire.send(b'[{"jsonrpc":"2.0","method":"daemon.ping","id":1}]\n')
    wire.end_input()
    assert (await wire.receive_line()).startswith(b'[{"jsonrpc":"2.0","result":')
    with pytest.raises(ConnectionLost):
        await wire.receive_line()
    await wire.close()
