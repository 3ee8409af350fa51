"""A pattern in a recording that goes on."""

from __future__ import annotations

import asyncio

import pytest

from xenpvd.backends.console import search
from xenpvd.backends.console.history import History
from xenpvd.patterns import compile
from xenpvd.tasks import Tasks
from xenpvd.views import ConsoleMatch


async def found(history: History, regex: str, since: int = 0) -> ConsoleMatch:
    match = await asyncio.wait_for(search.find(history, compile(regex), since), 5)
    assert match is not None
    return match


async def test_in_what_is_kept_from_an_offset_on() -> None:
    history = History(1 << 16)
    history.append(b"one two one\n")
    first = await found(history, "o(n)e")
    assert (first.start, first.end, first.text, first.groups) == (0, 3, b"one", (b"n",))
    assert (await found(history, "one", first.end)).start == 8


@pytest.mark.parametrize("before", [b"", b"x" * 10_000, b"line\n" * 3000, b"x" * 4095, b"\n" * 4097])
async def test_in_what_comes_byte_by_byte(before: bytes) -> None:
    """A line's beginning stays one, though what is before it is not looked at again."""
    history, tasks = History(1 << 20), Tasks()
    history.append(before)
    waiting = tasks.spawn(search.find(history, compile(r"^web\d+ login: $"), 0), "wait")
    for byte in b"\nweb12 login: ":
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        history.append(bytes([byte]))
    match = await asyncio.wait_for(waiting, 5)
    assert match is not None and match.start == len(before) + 1


async def test_over_several_lines() -> None:
    history, tasks = History(1 << 20), Tasks()
    waiting = tasks.spawn(search.find(history, compile(r"a\nb\nc"), 0), "wait")
    for line in (b"z\n", b"a\n", b"b\n", b"c\n"):
        await asyncio.sleep(0)
        history.append(line)
    match = await asyncio.wait_for(waiting, 5)
    assert match is not None and match.start == 2


async def test_the_recording_ends_without_it() -> None:
    history, tasks = History(1 << 16), Tasks()
    waiting = tasks.spawn(search.find(history, compile("never"), 0), "wait")
    await asyncio.sleep(0)
    history.close()
    assert await asyncio.wait_for(waiting, 5) is None


async def test_a_flood_is_looked_at_once() -> None:
    """Else a guest's burst would be searched again with each piece that comes."""
    history, looked, tasks = History(1 << 20), 0, Tasks()

    class Pattern:
        def search(self, data: bytes) -> None:
            nonlocal looked
            looked += len(data)

    tasks.spawn(search.find(history, Pattern(), 0), "wait")
    for _ in range(500):
        await asyncio.sleep(0)
        history.append(b"x" * 2048)
    await asyncio.sleep(0)
    await tasks.cancel()
    assert looked <= 500 * (2048 + search.MATCH_MAX)
