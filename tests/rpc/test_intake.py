"""Reading in a transport's stead: bytes at the asker's pace, and what came along with them."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from xenpvd.rpc.intake import Intake

Ends = tuple[Intake, socket.socket]


def send(peer: socket.socket, data: bytes, fds: list[int]) -> None:
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    intake = Intake(ours)
    yield intake, peer
    intake.close()
    ours.close()
    peer.close()


async def test_a_read_ends_where_descriptors_came(ends: Ends) -> None:
    intake, peer = ends
    peer.send(b"a")
    send(peer, b"b", [0])
    send(peer, b"c", [0, 1])
    peer.send(b"d")
    assert await intake.read() == b"ab"
    fd = intake.take_rights().take()
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert await intake.read() == b"c"
    assert intake.rights
    assert await intake.read() == b"d"


async def test_as_much_as_is_asked_for_and_nothing_ahead(ends: Ends) -> None:
    intake, peer = ends
    waiting = asyncio.ensure_future(intake.read(2))  # noqa: TID251
    await asyncio.sleep(0)
    peer.send(b"abcde")
    assert await waiting == b"ab"
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            peer.send(bytes(1 << 16))
    await asyncio.sleep(0.01)
    with pytest.raises(BlockingIOError):
        peer.send(bytes(1 << 16))
    assert await intake.read(3) == b"cde"
    assert await intake.read() == bytes(1 << 16)


async def test_a_reader_that_gave_up_loses_nothing(ends: Ends) -> None:
    intake, peer = ends
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await intake.read()
    peer.send(b"x")
    assert await intake.read() == b"x"


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
async def test_the_end(ends: Ends, how: int) -> None:
    intake, peer = ends
    waiting = asyncio.ensure_future(intake.read())  # noqa: TID251
    await asyncio.sleep(0)
    peer.shutdown(how)
    assert await waiting == b""
    assert await intake.read() == b""


async def test_one_who_sends_without_end_is_not_alone(ends: Ends) -> None:
    intake, peer = ends
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(others())  # noqa: TID251
    for _ in range(100):
        peer.send(b"x")
        assert await intake.read() == b"x"
    beside.cancel()
    assert turns >= 100
