"""The consoles as the guest has them: by name, with their logs, and what is watched for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.console_frontend import ConsoleFrontend
from xenpvd import consoles as module
from xenpvd.backends.console.backend import INPUT_MAX
from xenpvd.backends.console.logfile import LogFile
from xenpvd.config import ConsoleConfig
from xenpvd.consoles import Consoles
from xenpvd.errors import Busy, HostError, LimitReached, NotFound, PermissionRefused
from xenpvd.tasks import Tasks


class Bench:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.consoles = Consoles(lambda name, **data: self.events.append((name, data)))

    def told(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == name]

    async def configure(self, **config: Any) -> None:
        await self.consoles.configure(ConsoleConfig.model_validate(config))

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.consoles.close()


async def test_logs_of_both_are_kept_over_lives_and_end_with_their_definition(
    bench: Bench, tmp_path: Path
) -> None:
    files = {"log": str(tmp_path / "c.log"), "xen_log": str(tmp_path / "x.log")}
    await bench.configure(**files)
    before = dict(bench.consoles._logs)
    await bench.configure(**files)
    assert bench.consoles._logs == before
    assert [one.log for one in bench.consoles.listing()] == [*files.values()]
    bench.consoles.main.history.append(b"guest")
    bench.consoles.xen.history.append(b"xen")
    await bench.configure()
    assert [one.log for one in bench.consoles.listing()] == [None, None]
    assert [Path(file).read_bytes() for file in files.values()] == [b"guest", b"xen"]


async def test_a_log_that_cannot_be_written_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot log console 0"):
        await bench.configure(log=str(tmp_path))


async def test_what_is_watched_for_is_told_and_a_flood_of_it_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MATCH_PAUSE", 0.2)
    bench.consoles.main.history.append(b"panic before anybody watches\n")
    await bench.configure(match=["(?i)panic", "oops"])
    await bench.settle()
    bench.consoles.main.history.append(b"Kernel panic\n" + b"panic\n" * 5)
    await bench.settle()
    (told,) = bench.told("console.match")
    assert told == {
        "console": "0",
        "pattern": "(?i)panic",
        "start": 36,
        "end": 41,
        "text": "panic",
        "skipped": 0,
    }
    async with asyncio.timeout(5):
        while len(bench.told("console.match")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    last = bench.told("console.match")[1]
    assert (last["skipped"], last["start"]) == (4, 36 + 6 * 5), "the last of them is told by itself"
    bench.consoles.main.history.append(b"panic\n")
    async with asyncio.timeout(5):
        while len(bench.told("console.match")) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert bench.told("console.match")[2]["skipped"] == 0


async def test_a_pattern_of_nothing_holds_up_nobody(bench: Bench) -> None:
    await bench.configure(match=["x*"])
    bench.consoles.main.history.append(b"y" * 10_000)
    await bench.settle()
    assert len(bench.told("console.match")) == 1


@pytest.mark.parametrize("pattern", ["x*", "$", "(panic)?"])
async def test_a_pattern_that_matches_nothing_waits_for_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    looks = []
    find = module.Searcher.find

    async def counted(*args: Any) -> Any:
        looks.append(args)
        return await find(*args)

    monkeypatch.setattr(module.Searcher, "find", counted)
    await bench.configure(match=[pattern])
    bench.consoles.main.history.append(b"abc\n")
    for _ in range(5):
        await bench.settle()
    before = len(looks)
    for _ in range(5):
        await bench.settle()
    assert len(looks) == before <= 7


@pytest.mark.parametrize("pattern", ["", "(", "(?=x)"])
def test_a_pattern_that_is_none_is_refused_by_the_definition(pattern: str) -> None:
    with pytest.raises(ValueError, match="match"):
        ConsoleConfig.model_validate({"match": [pattern]})


@pytest.mark.parametrize(("text", "size"), [(65536, 65536), ("64K", 65536), ("1M", 1 << 20), ("8192", 8192)])
def test_sizes(text: object, size: int) -> None:
    assert ConsoleConfig.model_validate({"history": text}).history == size


@pytest.mark.parametrize("text", ["", "K", "64k", "1.5M", "-1M", "1M ", 1.5, None])
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="history"):
        ConsoleConfig.model_validate({"history": text})


async def test_as_many_wait_as_may(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS_MAX", 3)
    monkeypatch.setattr(module, "WAITS_VIEWERS", 2)
    tasks = Tasks()
    waiting = [tasks.spawn(bench.consoles.wait("0", "x", 0, 60), "wait") for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LimitReached, match="2 wait on console 0"):
        await bench.consoles.wait("0", "x", 0, 60)
    waiting.append(tasks.spawn(bench.consoles.wait("0", "x", 0, 60, privileged=True), "wait"))
    await asyncio.sleep(0)
    with pytest.raises(LimitReached, match="3 wait on console 0"):
        await bench.consoles.wait("0", "x", 0, 60, privileged=True)
    bench.consoles.main.history.append(b"x")
    assert [(await task).start for task in waiting] == [0, 0, 0]
    assert (await bench.consoles.wait("0", "x", 0, 60)).end == 1


async def test_who_waits_at_the_end_is_told(bench: Bench) -> None:
    tasks = Tasks()
    waiting = tasks.spawn(bench.consoles.wait("0", "x", 0, 60), "wait")
    await asyncio.sleep(0)
    await bench.consoles.close()
    with pytest.raises(NotFound, match="will not come"):
        await waiting


async def test_what_is_forgotten_is_in_the_log(bench: Bench, tmp_path: Path) -> None:
    await bench.configure(log=str(tmp_path / "c.log"), history=1 << 20)
    for _ in range(100):
        bench.consoles.main.history.append(b"x" * 2048)
    await bench.consoles.clear("0")
    assert bench.consoles.read("0", 0, None, 1 << 20).data == b""
    await bench.configure()
    assert (tmp_path / "c.log").read_bytes() == b"x" * 204_800


async def test_the_keyboard_is_given_by_number(bench: Bench) -> None:
    first, second, looker = (
        bench.consoles.attach("0", mode, None, None, mode, may_type=may)
        for mode, may in (("rw", True), ("ro", True), ("ro", False))
    )
    bench.consoles.steal(second.number)
    assert (first.mode, second.mode) == ("ro", "rw")
    with pytest.raises(PermissionRefused, match="may only look on, or has ended its typing"):
        bench.consoles.steal(looker.number)
    first.release()
    with pytest.raises(PermissionRefused, match="may only look on, or has ended its typing"):
        bench.consoles.steal(first.number)
    assert (first.mode, second.mode) == ("ro", "rw")
    second.close()
    with pytest.raises(NotFound, match="no viewer"):
        bench.consoles.steal(second.number)


async def test_what_was_typed_when_another_took_the_keyboard_is_told(bench: Bench) -> None:
    guest = ConsoleFrontend()
    bench.consoles.main.connect(guest.page, guest.port)
    tasks = Tasks()
    writing = tasks.spawn(bench.consoles.write("0", b"w" * 100_000, 60), "write")
    await bench.settle()
    bench.consoles.attach("0", "rw", None, None, "an operator")
    with pytest.raises(Busy, match="has the keyboard") as fault:
        while not writing.done():
            guest.reads()
            await asyncio.sleep(0)
        await writing
    assert INPUT_MAX < fault.value.data["written"] < 100_000
    await bench.consoles.main.disconnect()


async def test_what_comes_while_the_log_is_written_is_not_forgotten(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, history = LogFile.settle, bench.consoles.main.history

    async def settled(log: LogFile) -> None:
        await settle(log)
        history.append(b"meanwhile")

    monkeypatch.setattr(LogFile, "settle", settled)
    await bench.configure(log=str(tmp_path / "c.log"))
    history.append(b"before ")
    await bench.consoles.clear("0")
    assert bench.consoles.read("0", 0, None, 1 << 20).data == b"meanwhile"
    await bench.configure()
    assert (tmp_path / "c.log").read_bytes() == b"before meanwhile"


async def test_a_log_that_moves_misses_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest prints on while its definition is read anew."""
    close, history = LogFile.close, bench.consoles.main.history

    async def closed(log: LogFile) -> None:
        await close(log)
        history.append(b"between ")

    await bench.configure(log=str(tmp_path / "1"))
    history.append(b"one ")
    with monkeypatch.context() as patch:
        patch.setattr(LogFile, "close", closed)
        await bench.configure(log=str(tmp_path / "2"))
    history.append(b"two")
    await bench.configure()
    assert [(tmp_path / name).read_bytes() for name in "12"] == [b"one ", b"between two"]


async def test_where_no_other_log_can_be_made_the_old_one_goes_on(bench: Bench, tmp_path: Path) -> None:
    await bench.configure(log=str(tmp_path / "log"))
    with pytest.raises(HostError):
        await bench.configure(log=str(tmp_path))
    bench.consoles.main.history.append(b"on")
    await bench.configure()
    assert (tmp_path / "log").read_bytes() == b"on"


@pytest.mark.parametrize("end", ["the daemon's", "the pattern's"])
async def test_the_last_match_is_told_before_its_pause_is_over(bench: Bench, end: str) -> None:
    await bench.configure(match=["panic"])
    await bench.settle()
    bench.consoles.main.history.append(b"panic 1\npanic 2\npanic 3\n")
    await bench.settle()
    assert len(bench.told("console.match")) == 1
    await (bench.configure() if end == "the pattern's" else bench.consoles.close())
    first, last = bench.told("console.match")
    assert (first["start"], last["start"], last["skipped"]) == (0, 16, 1)
