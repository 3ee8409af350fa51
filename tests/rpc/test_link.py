"""A socket of messages by itself: in, out, and how it ends. Clients of every kind are in test_connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from xenpvd.rpc.link import Link

Ends = tuple[Link, asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """A link, and the peer's end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    yield Link(ours), reader, writer
    writer.close()
    ours.close()


async def test_messages_come_one_by_one(ends: Ends) -> None:
    link, _, peer = ends
    async with link.held():
        peer.write(b'{"a":1}{"b"')
        assert await link.receive() == b'{"a":1}'
        peer.write(b":2}\n[3")
        peer.write_eof()
        assert await link.receive() == b'{"b":2}'
        assert await link.receive() == b"[3"
        assert await link.receive() is None
        assert await link.receive() is None


async def test_what_is_behind_a_message(ends: Ends) -> None:
    link, _, peer = ends
    async with link.held():
        peer.write(b"{}raw")
        await link.receive()
        assert link.rest() == b"raw"


async def test_it_is_closed_in_the_end_and_what_was_sent_arrives(ends: Ends) -> None:
    link, reader, _ = ends
    async with link.held():
        await link.send(b"one\n")
        await link.send(b"two\n")
    assert await reader.read() == b"one\ntwo\n"
    with pytest.raises(ConnectionResetError):
        await link.send(b"three\n")


async def test_a_hangup_is_seen_and_a_half_close_is_not(ends: Ends) -> None:
    link, _, peer = ends
    left = asyncio.Event()
    async with link.held(left.set):
        peer.write_eof()
        assert await link.receive() is None
        assert not link.gone.is_set()
        peer.close()
        await asyncio.wait_for(left.wait(), 5)
        assert link.gone.is_set()
        with pytest.raises(ConnectionResetError):
            await link.send(b"x")


async def test_a_peer_that_does_not_read_holds_nobody_up(ends: Ends) -> None:
    link, _, _ = ends
    async with asyncio.timeout(5):
        async with link.held():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    while True:
                        await link.send(bytes(1 << 20))


async def test_a_message_that_was_sent_in_part_is_the_last(ends: Ends) -> None:
    """What follows would be read as the rest of it."""
    link, reader, _ = ends
    async with link.held():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.send(bytes(8 << 20))
        for again in (link.send(b"x"), link.receive()):
            with pytest.raises(ConnectionResetError):
                await again
        assert len(await reader.read()) < 8 << 20


async def test_who_does_not_hear_us_is_not_heard(ends: Ends) -> None:
    link, _, peer = ends
    async with link.held():
        peer.write(b"{}{}")
        assert await link.receive() == b"{}"
        with socket.socket(fileno=os.dup(peer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_RD)
        with pytest.raises(ConnectionError):
            await link.send(b"x")
        with pytest.raises(ConnectionError):
            await link.receive()
