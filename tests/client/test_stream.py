"""How a stream comes back: when, how often, and when it does not."""

from __future__ import annotations

import asyncio
import gc
from itertools import islice
from pathlib import Path

import pytest

from tests.client.conftest import HELLO, Daemon, Naps, impostor, until
from tests.fakes.service import FakeService
from xenpvd.client import ConnectionLost, Guest, Retry, RpcError, Unreachable, connect
from xenpvd.tasks import Tasks


def test_pauses() -> None:
    assert list(islice(Retry().pauses(), 9)) == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert list(Retry(first=1, longest=2, patience=4).pauses()) == [0, 1, 2, 2]
    assert list(Retry(patience=0).pauses()) == []


async def test_it_waits_longer_and_longer_and_then_begins_anew(
    guest: Guest, daemon: Daemon, naps: Naps
) -> None:
    async with guest.watch("/tool") as watch:
        assert await anext(watch) == "/tool"
        for _ in range(2):
            await daemon.stop()
            naps.taken.clear()

            async def fifth() -> None:
                if len(naps.taken) == 5:
                    await daemon.start()

            naps.then = fifth
            assert await anext(watch) == "/tool"
            assert naps.taken == [0, 0.1, 0.2, 0.4, 0.8]


async def test_a_daemon_that_answers_and_leaves_is_not_hurried(path: Path, naps: Naps) -> None:
    calls = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.write(HELLO)
        await reader.readline()
        writer.write(b'{"jsonrpc":"2.0","id":0,"result":{"watch":1}}\n')

    async with impostor(path, serve):
        guest = Guest(path, 5, 0, Retry(sleep=naps, patience=1))
        with pytest.raises(ConnectionLost, match="the daemon ended it"):
            await anext(guest.watch("/tool"))
        await guest.close()
    assert naps.taken == [0, 0.1, 0.2, 0.4, 0.8] and calls == 6


async def test_patience(daemon: Daemon, path: Path, naps: Naps) -> None:
    async with connect(path, retry=Retry(sleep=naps, patience=0.5)) as guest:
        await daemon.stop()
        with pytest.raises(Unreachable, match="it is missing"):
            await anext(guest.watch("/tool"))
    assert naps.taken == [0, 0.1, 0.2, 0.4]


async def test_what_the_daemon_refuses_is_not_tried_again(guest: Guest, daemon: Daemon, naps: Naps) -> None:
    with pytest.raises(RpcError) as fault:
        await anext(guest.watch("no path"))
    assert fault.value.reason == "VALIDATION" and naps.taken == []
    await until(lambda: daemon.connections == 1)


async def test_who_leaves_by_break_leaves_no_connection(guest: Guest, daemon: Daemon) -> None:
    async for path in guest.watch("/tool"):
        assert path == "/tool" and daemon.connections == 2
        break
    gc.collect()
    await until(lambda: daemon.connections == 1)


async def test_closed_by_another_task(guest: Guest, daemon: Daemon, service: FakeService) -> None:
    watch = guest.watch("/tool")
    assert await anext(watch) == "/tool"
    tasks = Tasks()
    waiting = tasks.spawn(anext(watch, "end"), "watch")  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await watch.aclose()
    assert await waiting == "end"
    assert [path async for path in watch] == []
    await until(lambda: daemon.connections == 1)
