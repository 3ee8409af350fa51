"""A recording with absolute offsets: what is kept, what is read, and who is woken."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.backends.console import history as history_module
from xenpvd.backends.console.history import BLOCK, History
from xenpvd.tasks import Tasks


async def waits(task: asyncio.Task[object]) -> bool:
    """Whether the task still waits after everything that could run has run."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


def test_offsets_are_absolute() -> None:
    history = History(10)
    assert (history.start, history.end, history.read(0, 5)) == (0, 0, (0, b""))
    for n in range(30):
        history.append(b"%02d" % n)
    assert (history.start, history.end) == (50, 60)
    assert history.read(52, 4) == (52, b"2627")
    assert history.read(0, 100) == (50, b"2526272829")
    assert history.read(60, 5) == history.read(999, 5) == (60, b"")
    assert history.tail(3) == b"829" and history.tail(99) == b"2526272829"


def test_a_piece_larger_than_the_limit() -> None:
    history = History(4)
    history.append(b"0123456789")
    assert (history.start, history.end, history.tail(9)) == (6, 10, b"6789")


def test_the_limit_can_change() -> None:
    history = History(100)
    history.append(bytes(range(50)))
    history.limit = 10
    assert history.start == 40
    history.append(b"x")
    assert history.read(0, 100) == (41, bytes(range(41, 50)) + b"x")


@given(
    limit=st.integers(1, 20),
    pieces=st.lists(st.binary(max_size=30)),
    since=st.integers(-5, 200),
    length=st.integers(0, 30),
    block=st.integers(1, 12),
)
def test_it_is_the_tail_of_the_stream(
    limit: int, pieces: list[bytes], since: int, length: int, block: int
) -> None:
    history, stream = History(limit), b""
    for piece in pieces:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(history_module, "BLOCK", block)
            history.append(piece)
        stream += piece
        assert sum(map(len, history._blocks)) < limit + block + max(map(len, pieces)) + 1
        assert (history.start, history.end) == (max(0, len(stream) - limit), len(stream))
        start, data = history.read(since, length)
        assert start == min(max(since, history.start), history.end)
        assert data == stream[start : start + length]


async def test_wait() -> None:
    history, tasks = History(10), Tasks()
    history.append(b"abc")
    assert await history.wait(2)
    task = tasks.spawn(history.wait(3), "wait")
    assert await waits(task)
    history.wake()
    assert await waits(task), "nothing has come"
    history.append(b"d")
    assert await task


async def test_a_recording_that_ends() -> None:
    history, tasks = History(10), Tasks()
    history.append(b"abc")
    task = tasks.spawn(history.wait(3), "wait")
    find = tasks.spawn(history.find(b"xyz"), "find")
    assert await waits(task)
    history.close()
    assert await task is False and await find is False
    assert await history.wait(2), "what is there can still be read"


@pytest.mark.parametrize(
    "pieces, text, since, found",
    [
        ([b"login: "], b"login:", 0, True),
        ([b"log", b"in", b": "], b"login:", 0, True),
        ([b"l", b"o", b"g", b"i", b"n"], b"login", 0, True),
        ([b"login: ", b"again"], b"login", 1, False),
        ([b"login: ", b"login"], b"login", 6, True),
        ([b"x" * 40, b"logi", b"n"], b"login", 0, True),
        ([b"x" * 40, b"login"], b"login", 38, True),
        ([b"login", b"y" * 40], b"login", 0, True),
        ([b"logi", b"m"], b"login", 0, False),
    ],
)
async def test_find_sees_text_whole_or_in_pieces(
    pieces: list[bytes], text: bytes, since: int, found: bool
) -> None:
    history, tasks = History(16), Tasks()
    find = tasks.spawn(history.find(text, since), "find")
    for piece in pieces:
        assert await waits(find)
        history.append(piece)
        if await waits(find) is False:
            break
    history.close()
    assert await find is found


async def test_find_looks_at_what_was_before() -> None:
    history = History(100)
    history.append(b"ready\n")
    assert await history.find(b"ready")


async def test_find_does_not_look_twice_at_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of history and a byte at a time: the work is that of the byte."""
    history, tasks = History(1 << 20), Tasks()
    history.append(bytes(1 << 20))
    find = tasks.spawn(history.find(b"needle"), "find")
    for _ in range(50):  # a block a turn
        await asyncio.sleep(0)
    assert await waits(find)
    looked: list[int] = []
    read = history.read

    def counted(since: int, limit: int) -> tuple[int, bytes]:
        start, data = read(since, limit)
        looked.append(len(data))
        return start, data

    monkeypatch.setattr(history, "read", counted)
    for byte in b"needle":
        history.append(bytes([byte]))
        await waits(find)
    assert await find and sum(looked) <= 6 * 6


@pytest.mark.parametrize("before", [0, 3, 10, BLOCK, BLOCK + 5, BLOCK + 10])
def test_what_comes_before_an_offset_is_forgotten(before: int) -> None:
    history = History(1 << 20)
    data = bytes(range(256)) * (BLOCK // 256) + b"0123456789"
    for piece in (data[:BLOCK], data[BLOCK:]):
        history.append(piece)
    history.clear(before)
    assert (history.start, history.end) == (before, len(data))
    history.append(b"more")
    assert history.read(0, 1 << 20) == (before, data[before:] + b"more")
