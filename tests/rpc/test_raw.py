"""console0.sock: bytes, as socat has them."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from xenpvd.access import Role
from xenpvd.errors import PermissionRefused
from xenpvd.rpc import console
from xenpvd.rpc.raw import ConsoleSocket


@pytest.fixture
async def door(service: FakeService, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "console0.sock"
    server = ConsoleSocket(service.consoles, path, "0")
    await server.start()
    yield path
    await server.stop()
    assert not path.exists()
    await server.stop()


async def test_replay_then_live_both_ways(door: Path, service: FakeService) -> None:
    assert door.stat().st_mode & 0o777 == 0o660
    service.console.print(b"before \xff\0\r\n")
    reader, writer = await asyncio.open_unix_connection(door)
    assert await reader.readexactly(11) == b"before \xff\0\r\n"
    service.console.echo = True
    writer.write(b"{ls}\n\x1d")
    assert await reader.readexactly(6) == b"{ls}\n\x1d"
    (viewer,) = service.consoles.viewers()
    assert (viewer.mode, viewer.who.endswith(", console0.sock")) == ("rw", True)
    writer.close()
    await until(lambda: not service.console.viewers)


async def test_the_second_one_looks_on_until_the_first_has_left(door: Path, service: FakeService) -> None:
    one = await asyncio.open_unix_connection(door)
    await until(lambda: len(service.console.viewers) == 1)
    two = await asyncio.open_unix_connection(door)
    await until(lambda: len(service.console.viewers) == 2)
    two[1].write(b"unheard")
    service.console.print(b"for both")
    for reader, _ in (one, two):
        assert await reader.readexactly(8) == b"for both"
    assert not service.console.typed
    for _, writer in (one, two):
        writer.close()
    await until(lambda: not service.console.viewers)


async def test_who_only_listens_hears_the_last_words(service: FakeService, tmp_path: Path) -> None:
    """``socat -u``, and the daemon's end."""
    server = ConsoleSocket(service.consoles, tmp_path / "s", "0")
    await server.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write_eof()
    await until(lambda: len(service.console.viewers) == 1)
    service.console.print(b"reboot: Power down")
    service.console.close()
    await server.stop()
    assert await reader.read() == b"reboot: Power down"
    writer.close()


async def test_a_client_that_is_gone_at_once_leaves_nothing(door: Path, service: FakeService) -> None:
    """M8, M10."""
    service.console.print(b"x" * 100_000)
    for _ in range(50):
        _, writer = await asyncio.open_unix_connection(door)
        writer.write(b"typed")
        writer.transport.abort()
    reader, writer = await asyncio.open_unix_connection(door)
    assert await reader.readexactly(100_000) == b"x" * 100_000
    writer.close()
    await until(lambda: not service.console.viewers)


@pytest.mark.parametrize("role", ["operator", "viewer", None])
async def test_roles(service: FakeService, tmp_path: Path, role: Role | None) -> None:
    door = ConsoleSocket(service.consoles, tmp_path / "console0.sock", "0", lambda peer: role, 0o666)
    await door.start()
    service.console.print(b"hello")
    reader, writer = await asyncio.open_unix_connection(tmp_path / "console0.sock")
    assert await reader.read(5) == (b"hello" if role else b"")
    modes = [viewer.mode for viewer in service.consoles.viewers()]
    assert modes == {"operator": ["rw"], "viewer": ["ro"], None: []}[role]
    if role == "viewer":
        with pytest.raises(PermissionRefused):
            service.consoles.steal(service.console.viewers[0].number)
    writer.close()
    await door.stop()


async def test_who_can_type_no_more_gives_the_keyboard_up(door: Path, service: FakeService) -> None:
    reader, writer = await asyncio.open_unix_connection(door)
    writer.write(b"ls")
    await service.console.wait_typed(b"ls")
    writer.write_eof()
    await until(lambda: service.console.writer is None)
    service.console.print(b"and looks on")
    assert await reader.readexactly(12) == b"and looks on"
    writer.close()


async def test_what_was_typed_before_a_close_is_typed(door: Path, service: FakeService) -> None:
    for number in range(20):
        _, writer = await asyncio.open_unix_connection(door)
        writer.write(b"%d," % number)
        writer.close()
        await service.console.wait_typed(b"%d," % number)
        await until(lambda: not service.console.viewers)


async def test_who_leaves_while_the_guest_prints(
    door: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last keys are typed, and the keyboard is free at once, though there is something left to read."""
    monkeypatch.setattr(console, "GRACE", 60)
    for number in range(5):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(door))
        await until(lambda: service.console.writer is not None)
        service.console.print(b"login: ")
        await until(lambda: bool(select.select([client], [], [], 0)[0]))  # noqa: B023
        for _ in range(5):
            await asyncio.sleep(0)
        client.sendall(b"%d" % number)
        service.console.print(b"more")
        client.close()
        await until(lambda: not service.console.viewers)
    assert service.console.typed == b"01234"


async def test_a_long_paste_before_a_close_is_typed(door: Path, service: FakeService) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(door))
    await until(lambda: service.console.writer is not None)
    client.sendall(b"x" * 100_000)
    client.close()
    await until(lambda: not service.console.viewers)
    assert len(service.console.typed) == 100_000
