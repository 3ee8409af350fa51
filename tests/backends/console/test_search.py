"""A pattern in a recording that goes on."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from random import choices
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.backends.console import search
from xenpvd.backends.console.history import History
from xenpvd.patterns import compile
from xenpvd.tasks import Tasks
from xenpvd.views import ConsoleMatch


async def found(history: History, regex: str, since: int = 0) -> ConsoleMatch:
    match = await asyncio.wait_for(search.Searcher().find(history, compile(regex), since), 5)
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
    waiting = tasks.spawn(search.Searcher().find(history, compile(r"^web\d+ login: $"), 0), "wait")
    for byte in b"\nweb12 login: ":
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        history.append(bytes([byte]))
    match = await asyncio.wait_for(waiting, 5)
    assert match is not None and match.start == len(before) + 1


async def test_a_lines_end_is_none_where_a_piece_ends() -> None:
    """A line too long to be matched whole would else be found as far as the piece goes."""
    history = History(1 << 20)
    history.append(b"\n" * (search.STEP - 1) + b"x" * (search.MATCH_MAX + 100) + b"\nx\n")
    assert (await found(history, "^x+$")).text == b"x"


async def test_over_several_lines() -> None:
    history, tasks = History(1 << 20), Tasks()
    waiting = tasks.spawn(search.Searcher().find(history, compile(r"a\nb\nc"), 0), "wait")
    for line in (b"z\n", b"a\n", b"b\n", b"c\n"):
        await asyncio.sleep(0)
        history.append(line)
    match = await asyncio.wait_for(waiting, 5)
    assert match is not None and match.start == 2


async def test_the_recording_ends_without_it() -> None:
    history, tasks = History(1 << 16), Tasks()
    waiting = tasks.spawn(search.Searcher().find(history, compile("never"), 0), "wait")
    await asyncio.sleep(0)
    history.close()
    assert await asyncio.wait_for(waiting, 5) is None


async def test_a_flood_is_looked_at_once() -> None:
    """Else a guest's burst would be searched again with each piece that comes."""
    history, looked, tasks = History(1 << 20), 0, Tasks()

    class Pattern:
        programsize = 1

        def search(self, data: bytes, begin: int, end: int) -> None:
            nonlocal looked
            looked += end - begin

    waiting = tasks.spawn(search.Searcher().find(history, Pattern(), 0), "wait")
    for _ in range(500):
        await asyncio.sleep(0)
        history.append(b"x" * 2048)
    await asyncio.sleep(0)
    assert not waiting.done()
    await tasks.cancel()
    assert 500 * 2048 <= looked <= 500 * (2048 + search.MATCH_MAX)


@pytest.mark.parametrize("regex", ["^b", r"\bb", "^b$"])
async def test_a_line_begins_where_one_does_and_not_where_a_search_does(regex: str) -> None:
    history, tasks = History(1 << 16), Tasks()
    history.append(b"ab")
    waiting = tasks.spawn(search.Searcher().find(history, compile(regex), 1), "wait")
    for piece in (b"", b"a", b"b", b"bb", b"c\nb"):
        history.append(piece)
        for _ in range(3):
            await asyncio.sleep(0)
        assert waiting.done() == (b"\n" in piece)
    match = await asyncio.wait_for(waiting, 5)
    assert match is not None and match.start == 8


async def test_from_an_offset_that_is_still_to_come() -> None:
    history, tasks = History(1 << 16), Tasks()
    history.append(b"x")
    waiting = tasks.spawn(search.Searcher().find(history, compile("x"), 3), "wait")
    for _ in range(3):
        history.append(b"x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    match = await asyncio.wait_for(waiting, 5)
    assert match is not None and match.start == 3


@given(
    data=st.lists(st.sampled_from([b"a", b"b", b"\n", b"ab", b"aab\n"]), max_size=40).map(b"".join),
    regex=st.sampled_from(["^a", "a$", "ab", "b\na", r"\bb", "a+b", "^$", "a*b\n^b", "b?", "^ab\n"]),
    since=st.integers(0, 20),
    step=st.integers(1, 9),
)
def test_steps_find_what_one_look_at_all_finds(data: bytes, regex: str, since: int, step: int) -> None:
    history = History(1 << 16)
    history.append(data)
    history.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "STEP", step)
        patch.setattr(search, "MATCH_MAX", len(data) + 1)
        match = asyncio.run(search.Searcher().find(history, compile(regex), since))
    whole = compile(regex).search(data, since) if since <= len(data) else None
    assert (match and (match.start, match.end)) == (whole and whole.span())


async def test_a_heavy_pattern_holds_up_nobody(no_collection: None) -> None:
    """For this one RE2 has no room for its fast way: 30 us a byte, for half a minute."""
    history, tasks = History(1 << 20), Tasks()
    history.append(bytes(choices(b"xy", k=1 << 20)))
    waiting = tasks.spawn(search.Searcher().find(history, compile("(x|y|xy|yx|xx|yy){500}z"), 0), "wait")
    longest = 0.0
    for _ in range(100):
        begin = time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.thread_time() - begin)
    assert not waiting.done() and longest < 0.1
    waiting.cancel()
    light = await asyncio.wait_for(search.Searcher().find(history, compile("x"), 0), 5)
    assert light is not None, "the thread still has its last piece: the light ones need none"


async def test_a_host_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> NoReturn:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(search, "_thread", Exhausted(1))
    monkeypatch.setattr(search, "TURN", 0)
    history = History(1 << 20)
    history.append(b"abc")
    found = await search.Searcher().find(history, compile("c"), 0)
    assert found is not None and found.start == 2


async def test_many_who_wait_hold_up_nobody(no_collection: None) -> None:
    """Each pattern is light enough for the loop, all of them together are not."""
    history, tasks, searcher = History(1 << 20), Tasks(), search.Searcher()
    history.append(bytes(choices(b"ab", k=8192)))
    for _ in range(64):
        tasks.spawn(searcher.find(history, compile("(a|b)*a(a|b){30}@"), 0), "wait")
    longest = 0.0
    for _ in range(30):
        history.append(b"abab")
        begin = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - begin)
    await tasks.cancel()
    assert longest < 0.05


async def test_a_match_at_the_end_of_a_piece_is_found_whole() -> None:
    history = History(1 << 20)
    before = search.STEP + search.MATCH_MAX - 50
    history.append(b"-" * before + b"x" + b"a" * 1000 + b"-" * search.STEP)
    match = await found(history, "xa+")
    assert (match.start, match.end) == (before, before + 1001)


async def test_a_long_recording_is_looked_through_in_turns() -> None:
    history, tasks, turns = History(1 << 20), Tasks(), 0
    history.append(b"x" * (1 << 20))
    looking = tasks.spawn(search.Searcher().find(history, compile("y"), 0), "wait")
    while not history._changed._waiters and turns < 1000:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 8 and not looking.done()  # what one turn may look at is a tenth of it
    await tasks.cancel()
