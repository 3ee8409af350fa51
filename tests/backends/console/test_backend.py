"""The console with a guest at one end and viewers at the other; on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.fakes.console_frontend import IN_CONS, IN_SIZE, OUT_CONS, OUT_PROD, OUT_SIZE, ConsoleFrontend
from xenpvd.backends.console import backend
from xenpvd.backends.console.backend import Console, Viewer
from xenpvd.errors import Busy, LimitReached, StateError, TimedOut, Unsupported
from xenpvd.tasks import Tasks


class Bench:
    def __init__(self, history: int = 1 << 16) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.console = Console(lambda name, **data: self.events.append((name, data)), history)
        self.guest = ConsoleFrontend()
        self.tasks = Tasks()

    def connect(self) -> ConsoleFrontend:
        self.guest = ConsoleFrontend()
        self.console.connect(self.guest.page, self.guest.port)
        return self.guest

    async def printed(self, data: bytes) -> None:
        """The guest prints, waiting for room as it must, and all of it has been recorded."""
        end = self.console.history.end + len(data)
        while data:
            data = data[self.guest.prints(data) :]
            await self.until(lambda: self.guest.page.load32(OUT_CONS) == self.guest.page.load32(OUT_PROD))
        assert self.console.history.end == end

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def waits(self, task: asyncio.Task[Any]) -> bool:
        for _ in range(10):
            await asyncio.sleep(0)
        return not task.done()

    def told(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == name]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.connect()
    yield bench
    await bench.console.disconnect()
    await bench.tasks.cancel()


async def read(viewer: Viewer, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await asyncio.wait_for(viewer.read(), 5)
        assert more, viewer.ended
        data += more
    return data


# -- output


async def test_every_viewer_sees_everything_byte_for_byte(bench: Bench) -> None:
    """M6: control characters, NUL and broken UTF-8 pass as they are."""
    data = bytes(range(256)) * 40
    first = bench.console.attach("rw", None, "first")
    task = bench.tasks.spawn(bench.printed(data), "guest")
    assert await read(first, len(data)) == data
    await task
    late = bench.console.attach("ro", None, "late")
    assert await read(late, len(data)) == data
    assert late.offset == first.offset == bench.console.history.end


@pytest.mark.parametrize("since, begin", [(None, 0), (0, 0), (3, 3), (6, 6), (99, 6), (-1, 0)])
async def test_a_viewer_begins_where_it_asks(bench: Bench, since: int | None, begin: int) -> None:
    await bench.printed(b"abcdef")
    viewer = bench.console.attach("ro", since, "v")
    assert viewer.offset == begin
    await bench.printed(b"!")
    assert await read(viewer, 7 - begin) == b"abcdef!"[begin:]


async def test_a_slow_viewer_is_cut_off_and_nobody_else(bench: Bench) -> None:
    """M4."""
    bench.console.history.limit = 4096
    slow, quick = (bench.console.attach("ro", None, who) for who in ("slow", "quick"))
    for _ in range(8):
        await bench.printed(bytes(1024))
        assert len(await read(quick, 1024)) == 1024
    assert await slow.read() == b""
    assert slow.ended == "too slow: 1024 bytes were lost"
    assert slow.close() == slow.ended
    assert bench.told("console.detached") == [
        {"console": "0", "viewer": slow.number, "who": "slow", "why": slow.ended, "kicked": False}
    ]
    assert len(bench.console.viewers) == 1


async def test_a_flood_is_bounded_without_any_viewer(bench: Bench) -> None:
    """M3."""
    for _ in range(50):
        await bench.printed(b"x" * OUT_SIZE)
    history = bench.console.history
    assert history.end - history.start == 1 << 16 and sum(map(len, history._blocks)) <= 2 << 16


async def test_the_guest_is_told_of_room_only_if_the_ring_was_full(bench: Bench) -> None:
    await bench.printed(b"x" * 100)
    assert bench.guest.port.notified == 0
    await bench.printed(b"x" * OUT_SIZE)
    assert bench.guest.port.notified == 1


async def test_output_that_cannot_be_is_ignored_until_it_can(bench: Bench) -> None:
    """M1."""
    bench.guest.page.store32(OUT_PROD, 5000)
    bench.guest.port.guest_kick()
    for _ in range(5):
        await asyncio.sleep(0)
    bench.guest.page.store32(OUT_PROD, 0)
    await bench.printed(b"sane again")
    assert bench.console.history.tail(99) == b"sane again"


# -- input


async def test_typing_reaches_the_guest_with_a_notification(bench: Bench) -> None:
    viewer = bench.console.attach("rw", None, "me")
    await viewer.write(b"ls\n")
    assert bench.guest.port.guest_pending()
    assert bench.guest.reads() == b"ls\n"


async def test_a_paste_larger_than_the_ring_goes_in_as_the_guest_reads(bench: Bench) -> None:
    data = bytes(n % 251 for n in range(10_000))
    await bench.console.type(data)
    taken = b""
    while len(taken) < len(data):
        part = bench.guest.reads()
        assert len(part) <= IN_SIZE
        taken += part
        await asyncio.sleep(0)
    assert taken == data


async def test_a_guest_that_does_not_read_makes_the_typist_wait(bench: Bench) -> None:
    """M5: 10 MiB wait in a bounded buffer, and for that client only."""
    viewer = bench.console.attach("rw", None, "me")
    data = bytes(n % 251 for n in range(10 << 20))
    task = bench.tasks.spawn(viewer.write(data), "paste")
    assert await bench.waits(task)
    assert len(bench.console._typed) <= backend.INPUT_MAX
    await bench.printed(b"still printing")
    taken = bytearray()
    while len(taken) < 300_000:
        taken += bench.guest.reads()
        await asyncio.sleep(0)
        assert len(bench.console._typed) <= backend.INPUT_MAX
    assert taken == data[: len(taken)]
    assert bench.console.taken >= len(taken)
    assert not task.done()


async def test_pastes_do_not_mix(bench: Bench) -> None:
    """What others type while a large paste waits for the guest comes after it, though there was room."""
    size = backend.INPUT_MAX * 2
    tasks = [bench.tasks.spawn(bench.console.type(b"a" * size), "paste")]
    taken = b""
    while len(taken) < size + len(tasks) - 1:
        taken += bench.guest.reads()
        if len(taken) < size:
            tasks.append(bench.tasks.spawn(bench.console.type(b"b"), "typing"))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert taken == b"a" * size + b"b" * (len(tasks) - 1)


async def test_input_for_a_reader_that_is_ahead_waits(bench: Bench) -> None:
    """M2, and it goes on once the guest's index makes sense."""
    bench.guest.page.store32(IN_CONS, 77)
    await bench.console.type(b"x")
    bench.guest.page.store32(IN_CONS, 0)
    bench.guest.port.guest_kick()
    await bench.until(lambda: bench.guest.take() == b"x")


async def test_nobody_types_into_nothing() -> None:
    bench = Bench()
    viewer = bench.console.attach("rw", None, "me")
    with pytest.raises(StateError, match="the guest is not running"):
        await viewer.write(b"x")


async def test_who_types_while_the_guest_ends_is_told(bench: Bench) -> None:
    task = bench.tasks.spawn(bench.console.type(bytes(1 << 20)), "paste")
    assert await bench.waits(task)
    await bench.console.disconnect()
    guest = bench.connect()
    with pytest.raises(StateError):
        await task
    guest.port.guest_kick()
    await bench.printed(b"x")
    assert guest.take() == b"", "what was typed for one life does not reach the next"


SIZE = 70_000
GIVEN = IN_SIZE + backend.INPUT_MAX


async def test_typing_ends_when_its_time_is_up(bench: Bench) -> None:
    with pytest.raises(TimedOut, match=r"was given 66560 of 70000 bytes in 0\.01 s.*was not typed") as caught:
        await bench.console.type(b"a" * SIZE, 0.01)
    assert caught.value.data == {"written": GIVEN}
    with pytest.raises(TimedOut, match="was given 0 of 1 bytes"):
        await bench.console.type(b"b", 0)
    await reads_on(bench)


async def test_typing_that_is_cancelled_leaves_no_half_state(bench: Bench) -> None:
    """Neither the one that waits for the guest nor the one that waits for its turn."""
    tasks = [bench.tasks.spawn(bench.console.type(text * SIZE), "paste") for text in (b"a", b"b")]
    assert await bench.waits(tasks[0])
    for task in tasks:
        task.cancel()
    assert [type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 2
    await reads_on(bench)


async def test_the_time_is_up_while_another_types(bench: Bench) -> None:
    paste = bench.tasks.spawn(bench.console.type(b"a" * SIZE), "paste")
    assert await bench.waits(paste)
    with pytest.raises(TimedOut) as caught:
        await bench.console.type(b"b", 0.01)
    assert caught.value.data == {"written": 0}
    paste.cancel()
    await asyncio.wait({paste})
    await reads_on(bench)


async def reads_on(bench: Bench) -> None:
    """What the guest was given is there, nothing of the rest, and the next one types."""
    task = bench.tasks.spawn(bench.console.type(b"!", 5), "next")
    taken = b""
    while not taken.endswith(b"!"):
        taken += bench.guest.reads()
        await asyncio.sleep(0)
    await task
    assert taken == b"a" * GIVEN + b"!"


# -- viewers


async def test_one_keyboard(bench: Bench) -> None:
    first = bench.console.attach("rw", None, "first")
    with pytest.raises(Busy, match="first has it") as caught:
        bench.console.attach("rw", None, "second")
    assert caught.value.data == {"by": "first"}
    looker = bench.console.attach("ro", None, "looker")
    with pytest.raises(Busy, match="read-only"):
        await looker.write(b"x")
    thief = bench.console.attach("steal", None, "thief")
    assert (first.mode, thief.mode, bench.console.writer) == ("ro", "rw", "thief")
    with pytest.raises(Busy):
        await first.write(b"x")
    await thief.write(b"mine")
    assert bench.guest.reads() == b"mine"
    thief.close()
    assert bench.console.writer is None
    assert bench.console.attach("rw", None, "again").mode == "rw"
    assert [event["who"] for event in bench.told("console.attached")] == ["first", "looker", "thief", "again"]
    looker.steal()
    looker.release()
    assert [(event["who"], event["mode"]) for event in bench.told("console.keyboard")] == [
        ("first", "ro"),
        ("again", "ro"),
        ("looker", "rw"),
        ("looker", "ro"),
    ]


@pytest.mark.parametrize("how", ["steal", "kick"])
async def test_who_loses_the_keyboard_types_no_more(bench: Bench, how: str) -> None:
    """The taker's ^C is the next thing that the guest reads behind what it has been given."""
    first = bench.console.attach("rw", None, "first")
    paste = bench.tasks.spawn(first.write(b"a" * SIZE), "paste")
    queued = bench.tasks.spawn(first.write(b"b"), "behind it")
    assert await bench.waits(paste)
    if how == "kick":
        bench.console.kick(first, "ended by the boss")
    second = bench.console.attach("steal", None, "second")
    for task in (paste, queued):
        with pytest.raises(Busy, match=r"read-only" if how == "steal" else r"over \(ended by the boss\)"):
            await task
    await second.write(b"\x03")
    taken = b""
    while not taken.endswith(b"\x03"):
        taken += bench.guest.reads()
        await asyncio.sleep(0)
    assert taken == b"a" * IN_SIZE + b"\x03"


async def takes(bench: Bench, task: asyncio.Task[None]) -> bytes:
    """What the guest is given until ``task`` is done, and it takes no more."""
    taken = b""
    while not task.done() or bench.console._typed:
        taken += bench.guest.reads()
        await asyncio.sleep(0)
    return taken + bench.guest.reads()


async def test_who_takes_the_keyboard_from_themselves_loses_nothing(bench: Bench) -> None:
    viewer = bench.console.attach("rw", None, "one")
    paste = bench.tasks.spawn(viewer.write(b"a" * SIZE), "paste")
    assert await bench.waits(paste)
    viewer.steal()
    assert await takes(bench, paste) == b"a" * SIZE


async def test_who_is_over_takes_no_keyboard(bench: Bench) -> None:
    first, ghost = bench.console.attach("rw", None, "first"), bench.console.attach("ro", None, "ghost")
    ghost.close()
    with pytest.raises(Busy, match=r"over \(detached\)"):
        ghost.steal()
    assert (first.mode, ghost.mode, bench.console.writer) == ("rw", "ro", "first")


@pytest.mark.parametrize("input, taken", [("single", IN_SIZE), ("shared", GIVEN)])
async def test_what_a_kick_takes_along(bench: Bench, input: str, taken: int) -> None:
    """Also of one who ended their typing before; what is mixed with others' stays."""
    bench.console.input = input
    viewer = bench.console.attach("rw", None, "one")
    paste = bench.tasks.spawn(viewer.write(b"a" * SIZE), "paste")
    assert await bench.waits(paste)
    viewer.release()
    bench.console.kick(viewer, "ended by the boss")
    with pytest.raises(Busy):
        await asyncio.wait_for(asyncio.shield(paste), 5)
    assert len(await takes(bench, paste)) == taken


async def test_who_is_ended_while_they_wait_for_the_guest_is_told(bench: Bench) -> None:
    viewer = bench.console.attach("rw", None, "one")
    paste = bench.tasks.spawn(viewer.write(b"a" * SIZE), "paste")
    assert await bench.waits(paste)
    bench.console.detach(viewer, "too slow")
    with pytest.raises(Busy, match="too slow"):
        await asyncio.wait_for(paste, 5)


async def test_what_was_typed_by_one_who_left_still_comes(bench: Bench) -> None:
    viewer = bench.console.attach("rw", None, "a program")
    await viewer.write(b"a" * 5000)
    viewer.close()
    taken = b""
    while len(taken) < 5000:
        taken += bench.guest.reads()
        await asyncio.sleep(0)
    with pytest.raises(Busy, match=r"over \(detached\)"):
        await viewer.write(b"x")


async def test_of_a_shared_console_that_is_no_longer_the_first_one_keeps_the_keyboard(bench: Bench) -> None:
    bench.console.input = "shared"
    viewers = [bench.console.attach(mode, None, mode) for mode in ("ro", "rw", "rw")]
    late = bench.tasks.spawn(viewers[2].write(b"a" * SIZE), "paste")
    assert await bench.waits(late)
    bench.console.input = "single"
    assert [viewer.mode for viewer in viewers] == ["ro", "rw", "ro"]
    with pytest.raises(Busy):
        await late


async def test_close_ends_a_read_that_waits(bench: Bench) -> None:
    viewer, other = (bench.console.attach("ro", None, who) for who in "ab")
    task = bench.tasks.spawn(viewer.read(), "read")
    others = bench.tasks.spawn(other.read(), "other read")
    assert await bench.waits(task)
    assert viewer.close() == "detached"
    assert await asyncio.wait_for(task, 1) == b""
    assert await bench.waits(others), "only its own"
    assert viewer.close() == "detached" and len(bench.console.viewers) == 1
    assert await viewer.read() == b""
    await bench.printed(b"x")
    assert await others == b"x"


async def test_a_read_that_is_cancelled_loses_nothing(bench: Bench) -> None:
    """M10: a client goes in the middle; another read begins where the last byte was taken."""
    viewer = bench.console.attach("ro", None, "v")
    task = bench.tasks.spawn(viewer.read(), "read")
    assert await bench.waits(task)
    task.cancel()
    await bench.printed(b"abc")
    assert await read(viewer, 3) == b"abc"


async def test_attaching_and_detaching_leaves_nothing(bench: Bench) -> None:
    """M8."""
    await bench.printed(b"hello")
    for _ in range(1000):
        viewer = bench.console.attach("rw", None, "v")
        assert await viewer.read() == b"hello"
        viewer.close()
    assert not bench.console.viewers and bench.console.writer is None


# -- life


async def test_the_last_bytes_are_drained_at_the_end(bench: Bench) -> None:
    """M7: what the guest printed just before its power-off, kicked or not."""
    viewer = bench.console.attach("ro", None, "v")
    bench.guest.put(b"reboot: Power down\n")
    await bench.console.disconnect()
    assert bench.guest.port.closed
    assert await read(viewer, 19) == b"reboot: Power down\n"
    assert viewer.ended is None


async def test_a_reboot_keeps_viewers_and_offsets(bench: Bench) -> None:
    """M9."""
    viewer = bench.console.attach("rw", None, "v")
    await bench.printed(b"first life\n")
    await bench.console.disconnect()
    await bench.console.disconnect()
    with pytest.raises(StateError):
        await viewer.write(b"x")
    bench.connect()
    await bench.printed(b"second life\n")
    await viewer.write(b"y")
    assert bench.guest.reads() == b"y"
    assert await read(viewer, 23) == b"first life\nsecond life\n"


async def test_at_the_daemons_end_viewers_get_the_rest_and_are_told(bench: Bench) -> None:
    reader, waiter = (bench.console.attach("ro", None, who) for who in "ab")
    await bench.printed(b"bye")
    assert await waiter.read() == b"bye"
    task = bench.tasks.spawn(waiter.read(), "read")
    assert await bench.waits(task)
    bench.console.close()
    assert await asyncio.wait_for(task, 1) == b""
    assert waiter.ended == "the daemon ends"
    assert await reader.read() == b"bye" and await reader.read() == b""
    assert not bench.console.viewers


async def test_a_mistake_of_ours_ends_the_console_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(data: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.console.history, "append", wrong)
    bench.guest.prints(b"x")
    await bench.until(lambda: bool(bench.told("console.error")))
    assert bench.told("console.error") == [
        {"console": "0", "message": "the console stopped: ZeroDivisionError"}
    ]
    assert "console failed" in caplog.text


# -- several keyboards, none, and the ends of viewers


async def test_a_shared_console_has_a_keyboard_for_everybody(bench: Bench) -> None:
    bench.console.input = "shared"
    modes: list[str] = []
    one = bench.console.attach("rw", None, "one", modes.append)
    two = bench.console.attach("rw", None, "two")
    ro = bench.console.attach("ro", None, "three")
    assert [viewer.mode for viewer in (one, two, ro)] == ["rw", "rw", "ro"]
    await one.write(b"1")
    await two.write(b"2")
    ro.steal()
    await ro.write(b"3")
    assert bench.guest.take() == b"123" and modes == ["rw"]


async def test_who_loses_the_keyboard_is_told(bench: Bench) -> None:
    modes: list[str] = []
    one = bench.console.attach("rw", None, "one", modes.append)
    two = bench.console.attach("steal", None, "two")
    assert modes == ["rw", "ro"]
    one.steal()
    assert modes == ["rw", "ro", "rw"] and two.mode == "ro"
    one.steal()
    assert modes == ["rw", "ro", "rw"]


async def test_a_console_for_reading_only() -> None:
    console = Console(lambda name, **data: None, 1 << 16, "xen", input="none")
    console.history.append(b"(XEN)")
    viewer = console.attach("ro", None, "me")
    assert await viewer.read() == b"(XEN)"
    for mode in ("rw", "steal"):
        with pytest.raises(Unsupported, match="console xen is for reading only"):
            console.attach(mode, None, "me")
    with pytest.raises(Unsupported):
        await console.type(b"x")
    assert console.viewers == (viewer,)


async def test_where_a_life_begins_is_told(bench: Bench) -> None:
    await bench.printed(b"first")
    await bench.console.disconnect()
    bench.connect()
    told = [(one["offset"], one["boot"]) for one in bench.told("console.opened")]
    assert told == [(0, 1), (5, 2)]


async def test_as_many_viewers_as_may(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "VIEWERS_MAX", 2)
    first = bench.console.attach("ro", None, "one")
    bench.console.attach("ro", None, "two")
    with pytest.raises(LimitReached):
        bench.console.attach("steal", None, "three")
    first.close()
    assert bench.console.attach("rw", None, "three").mode == "rw"


async def test_what_is_cleared_is_too_late_for_who_has_not_read_it(bench: Bench) -> None:
    await bench.printed(b"secret")
    slow = bench.console.attach("ro", 0, "slow")
    quick = bench.console.attach("ro", 0, "quick")
    await read(quick, 6)
    bench.console.history.clear()
    await bench.printed(b"!")
    assert await read(quick, 1) == b"!"
    assert await slow.read() == b"" and slow.ended == "too slow: 6 bytes were lost"


async def test_a_kick_leaves_what_others_have_typed(bench: Bench) -> None:
    typist = bench.console.attach("rw", None, "typist")
    await typist.write(b"x" * (IN_SIZE + 100))
    bench.console.kick(bench.console.attach("ro", None, "looker"), "ended by the boss")
    taken = bytearray()

    def all_of_it() -> bool:
        taken.extend(bench.guest.reads())
        return len(taken) == IN_SIZE + 100

    await bench.until(all_of_it)
