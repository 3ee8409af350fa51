"""A console's bytes without gap or repeat, over lost connections, and a keyboard."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from tests.client.conftest import HELLO, Daemon, Naps, impostor, until
from tests.fakes.service import FakeService
from xenpvd.client import Chunk, ConnectionLost, Console, Guest, Retry, Unreachable, connect
from xenpvd.errors import Busy, NotFound, Unsupported


async def read(console: Console, size: int) -> list[Chunk]:
    """Chunks of so many bytes together."""
    chunks: list[Chunk] = []
    while sum(len(chunk.data) for chunk in chunks) < size:
        chunks.append(await anext(console))
    return chunks


def joined(chunks: list[Chunk]) -> bytes:
    """Their bytes, which have no gap."""
    for before, after in pairwise(chunks):
        assert after.offset == before.offset + len(before.data)
    assert all(chunk.lost == 0 for chunk in chunks)
    return b"".join(chunk.data for chunk in chunks)


async def test_what_is_kept_and_what_comes(guest: Guest, service: FakeService) -> None:
    service.console.print(b"Linux version 6.1\r\n")
    async with guest.console() as console:
        assert (console.offset, console.mode) == (0, "ro")
        assert console.viewer == (await guest.console_viewers())[0]["viewer"]
        assert joined(await read(console, 19)) == b"Linux version 6.1\r\n"
        service.console.print(b"login: ")
        assert await anext(console) == Chunk(19, b"login: ")
        assert console.offset == 26
    async with guest.console("xen", since=6) as xen:
        assert joined(await read(xen, 17)) == b"Xen version 4.17\n"
    await until(lambda: not service.console.viewers)


async def test_over_lost_connections_without_gap_or_repeat(
    guest: Guest, daemon: Daemon, service: FakeService
) -> None:
    text = bytes(range(256)) * 1024
    async with guest.console() as console:
        got = []
        for at in range(0, len(text), 1 << 15):
            service.console.print(text[at : at + (1 << 15)])
            got += await read(console, 1)
            daemon.cut()
            await until(lambda: not service.console.viewers)
        got += await read(console, len(text) - (console.offset or 0))
    assert joined(got) == text


async def test_what_is_no_longer_kept_is_counted(guest: Guest, daemon: Daemon, service: FakeService) -> None:
    service.console.print(b"old")
    async with guest.console() as console:
        await read(console, 3)
        daemon.cut()
        await until(lambda: not service.console.viewers)
        service.console.print(b"never seen")
        service.console.history.clear()
        service.console.print(b"new")
        assert await anext(console) == Chunk(13, b"new", lost=10)
    async with guest.console(since=1) as console:
        assert await anext(console) == Chunk(13, b"new", lost=12)


async def test_a_new_daemon_has_a_new_recording(guest: Guest, daemon: Daemon, service: FakeService) -> None:
    service.console.print(b"the first life")
    async with guest.console() as console:
        await read(console, 14)
        (await daemon.replace()).console.print(b"again")
        assert await anext(console) == Chunk(0, b"again", lost=None)
        daemon.cut()
        daemon.service.console.print(b"!")
        assert await anext(console) == Chunk(5, b"!", lost=0)


async def test_typing(guest: Guest, service: FakeService) -> None:
    service.console.echo = True
    async with guest.console(mode="rw") as console:
        await console.write(b"uname\n")
        assert joined(await read(console, 6)) == b"uname\n"
        with pytest.raises(Busy):
            async with guest.console(mode="rw"):
                pass
        async with guest.console() as other:
            with pytest.raises(Busy, match="look on"):
                await other.write(b"x")
        async with guest.console(mode="steal") as thief:
            assert thief.mode == "rw"
            await thief.write(b"mine")
            await service.console.wait_typed(b"uname\nmine")


async def test_the_last_words_are_typed(guest: Guest, service: FakeService) -> None:
    async with guest.console(mode="rw") as console:
        await console.write(b"x" * 300_000)
    await asyncio.wait_for(service.console.wait_typed(b"x" * 300_000), 5)


async def test_the_keyboard_after_a_lost_connection(
    guest: Guest, daemon: Daemon, service: FakeService
) -> None:
    async with guest.console(mode="steal") as console:
        daemon.cut()
        await until(lambda: not service.console.viewers)
        with pytest.raises(ConnectionLost, match="cannot type") as lost:
            await console.write(b"x")
        assert not lost.value.maybe_done
        service.console.print(b"a")
        assert (await anext(console)).data == b"a" and console.mode == "rw"
        daemon.cut()
        await until(lambda: not service.console.viewers)
        async with guest.console(mode="rw"):
            service.console.print(b"b")
            assert (await anext(console)).data == b"b" and console.mode == "ro"  # not stolen again


async def test_refusals(guest: Guest) -> None:
    with pytest.raises(NotFound):
        async with guest.console("none"):
            pass
    with pytest.raises(Unsupported):
        async with guest.console("xen", mode="rw"):
            pass


async def test_who_is_no_daemon(path: Path, naps: Naps) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readline()
        writer.write(b'{"jsonrpc":"2.0","id":0,"result":{"offset":"?"}}\n')

    async with impostor(path, serve), connect(path, retry=Retry(sleep=naps)) as guest:
        with pytest.raises(Unreachable, match=r"answers to console\.attach"):
            async with guest.console():
                pass
