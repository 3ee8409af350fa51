"""A console's log file: what is written, how, and what happens when it cannot be."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import localtime, strftime
from typing import Any

import pytest

from xenpvd.backends.console import logfile
from xenpvd.backends.console.history import History
from xenpvd.backends.console.logfile import LogFile, LogTerms
from xenpvd.errors import HostError

NOW = 1795792071.25
STAMP = f"[{strftime('%Y-%m-%d %H:%M:%S', localtime(NOW))}.250] ".encode()


class Bench:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "console.log"
        self.history = History(1 << 16)
        self.told: list[dict[str, Any]] = []
        self.log: LogFile | None = None

    async def begin(self, before: LogFile | None = None, **terms: Any) -> LogFile:
        whole = LogTerms(
            **({"path": self.path, "size": 1 << 20, "keep": 2, "timestamps": False, "safe": False} | terms)
        )
        self.log = LogFile(self.history, "0", whole, lambda name, **data: self.told.append(data), lambda: NOW)
        await self.log.open(before)
        return self.log

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def has(self, data: bytes, path: Path | None = None) -> None:
        path = path or self.path

        def is_there() -> bool:
            try:
                return path.read_bytes() == data
            except FileNotFoundError:  # amid a rotation, too
                return False

        await self.until(is_there)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(logfile, "RETRY", 0.01)
    bench = Bench(tmp_path)
    yield bench
    if bench.log is not None:
        await bench.log.close()


async def test_byte_for_byte_behind_what_is_there(bench: Bench) -> None:
    bench.path.write_bytes(b"older\n")
    bench.history.append(b"before it was asked for")
    await bench.begin()
    data = bytes(range(256)) * 200
    bench.history.append(data)
    await bench.has(b"older\n" + data)
    assert bench.path.stat().st_mode & 0o777 in (0o640, 0o644)


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        ([b"a\nb\n"], STAMP + b"a\n" + STAMP + b"b\n"),
        ([b"a", b"b\nc", b"\n\n"], STAMP + b"ab\n" + STAMP + b"c\n" + STAMP + b"\n"),
        ([b"no end"], STAMP + b"no end"),
    ],
)
async def test_each_line_begins_with_the_time(bench: Bench, pieces: list[bytes], written: bytes) -> None:
    await bench.begin(timestamps=True)
    so_far = b""
    for piece in pieces:
        bench.history.append(piece)
        so_far += piece
        await bench.until(lambda: bench.path.read_bytes().replace(STAMP, b"") == so_far)  # noqa: B023
    assert bench.path.read_bytes() == written


async def test_nothing_that_a_terminal_obeys(bench: Bench) -> None:
    await bench.begin(safe=True)
    bench.history.append(b"\x1b[31mred\x1b[0m\r\n\x07\x00\x7ft\tab \xc3\xa9\n")
    await bench.has(b".[31mred.[0m\n...t\tab \xc3\xa9\n")


async def test_rotation_keeps_as_many_as_it_shall(bench: Bench) -> None:
    """M3."""
    await bench.begin(size=4096)
    for n in range(5):
        bench.history.append(b"%d" % n * 3000)
        await bench.has(b"%d" % n * 3000)
    older = {path.name: path.read_bytes()[:1] for path in bench.path.parent.iterdir()}
    assert older == {"console.log": b"4", "console.log.1": b"3", "console.log.2": b"2"}


async def test_none_is_kept(bench: Bench) -> None:
    await bench.begin(size=4096, keep=0)
    for letter in (b"a", b"b"):
        bench.history.append(letter * 3000)
        await bench.has(letter * 3000)
    assert [path.name for path in bench.path.parent.iterdir()] == ["console.log"]


async def test_one_that_was_moved_is_made_anew(bench: Bench) -> None:
    """As logrotate does it, and SIGHUP."""
    log = await bench.begin()
    bench.history.append(b"one")
    await bench.has(b"one")
    moved = bench.path.rename(bench.path.with_name("moved"))
    log.reopen()
    bench.history.append(b"two")
    await bench.has(b"two")
    assert moved.read_bytes() == b"one"


async def test_a_new_file_that_cannot_be_made_yet_is_made_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await bench.begin()
    moved = bench.path.rename(bench.path.with_name("moved"))
    bench.path.mkdir()
    log.reopen()
    bench.history.append(b"one")
    await bench.until(lambda: bool(bench.told))
    assert "cannot be written" in bench.told[0]["error"]
    bench.path.rmdir()
    await bench.has(b"one")
    assert moved.read_bytes() == b""


async def test_a_full_disk_is_told_once_and_nothing_is_lost_that_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6."""
    write, room = os.write, [5]

    def full(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    await bench.begin()
    monkeypatch.setattr(logfile.os, "write", full)
    bench.history.append(b"0123456789")
    await bench.until(lambda: bool(bench.told))
    bench.history.append(b"more")
    error = "it cannot be written: No space left on device"
    assert bench.told == [{"console": "0", "path": str(bench.path), "error": error, "lost": 0}]
    room[0] = 1 << 20
    await bench.has(b"0123456789more")
    await bench.until(lambda: len(bench.told) == 2)
    assert bench.told[1]["error"] is None and bench.told[1]["lost"] == 0


async def test_what_is_no_longer_kept_is_missing_and_the_file_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    bench.history.limit = 4096
    await bench.begin()
    write = os.write
    monkeypatch.setattr(logfile.os, "write", broken)
    bench.history.append(b"a" * 100)
    await bench.until(lambda: bool(bench.told))
    for _ in range(10):
        bench.history.append(b"b" * 4096)
    monkeypatch.setattr(logfile.os, "write", write)
    await bench.has(b"a" * 100 + b"\n[36864 bytes are missing]\n" + b"b" * 4096)
    await bench.until(lambda: len(bench.told) == 2)
    assert bench.told[1]["lost"] == 36864
    assert bench.log is not None and bench.log.lost == 36864


async def test_who_prints_faster_than_it_is_written_is_told_of_what_is_missing(bench: Bench) -> None:
    bench.history.limit = 4096
    await bench.begin()
    bench.history.append(b"a" * 5000)
    await bench.until(lambda: bool(bench.told))
    assert [(told["error"], told["lost"]) for told in bench.told] == [(None, 904)]
    assert bench.path.read_bytes() == b"\n[904 bytes are missing]\n" + b"a" * 4096


@pytest.mark.parametrize("blocked", ["console.log.new", "console.log.2"])
async def test_without_a_new_file_it_grows_and_the_older_ones_stay(bench: Bench, blocked: str) -> None:
    """A folder is in the way, as a descriptor too few would be."""
    folder, older = bench.path.with_name(blocked), bench.path.with_name("console.log.1")
    (folder / "not empty").mkdir(parents=True)
    older.write_bytes(b"older")
    await bench.begin(size=4096)
    for letter in (b"a", b"b", b"c"):
        bench.history.append(letter * 3000)
        await bench.until(lambda: bench.path.read_bytes().endswith(letter * 3000))  # noqa: B023
    assert bench.path.read_bytes() == b"a" * 3000 + b"b" * 3000 + b"c" * 3000
    assert older.read_bytes() == b"older" and {path.name for path in bench.path.parent.iterdir()} == {
        "console.log",
        "console.log.1",
        blocked,
    }
    await bench.until(lambda: bool(bench.told))
    (told,) = bench.told
    assert "grows beyond its size" in told["error"] and "Is a directory" in told["error"]
    folder.rename(bench.path.with_name("away"))
    bench.history.append(b"d" * 3000)
    await bench.has(b"d" * 3000)
    await bench.until(lambda: len(bench.told) == 2)
    assert bench.told[1]["error"] is None and bench.path.with_name("console.log.2").read_bytes() == b"older"


async def test_one_that_was_deleted_is_made_anew(bench: Bench) -> None:
    await bench.begin()
    bench.history.append(b"one")
    await bench.has(b"one")
    bench.path.unlink()
    bench.history.append(b"two")
    await bench.has(b"two")


async def test_at_the_end_the_last_bytes_are_written(bench: Bench) -> None:
    log = await bench.begin()
    bench.history.append(b"reboot: Power down")
    bench.history.close()
    await log.close()
    assert bench.path.read_bytes() == b"reboot: Power down"
    await log.close()


async def test_the_end_does_not_wait_for_a_disk_that_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(logfile, "GRACE", 0.05)
    log = await bench.begin()
    monkeypatch.setattr(logfile.os, "write", broken)
    bench.history.append(b"x")
    await log.close()
    assert "the end of the log is missing" in caplog.text


@pytest.mark.parametrize("what", ["folder", "fifo", "link", "missing"])
async def test_what_is_no_file(bench: Bench, what: str) -> None:
    if what == "folder":
        bench.path.mkdir()
    elif what == "fifo":
        os.mkfifo(bench.path)
    elif what == "link":
        bench.path.symlink_to("/etc/hostname")
    else:
        bench.path = bench.path / "none" / "x"
    with pytest.raises(HostError, match=r"cannot log console 0 to .* Check the path"):
        await bench.begin()
    bench.log = None


async def test_one_that_just_fits_is_not_rotated(bench: Bench) -> None:
    await bench.begin(size=4096)
    bench.history.append(b"a" * 4000)
    await bench.has(b"a" * 4000)
    bench.history.append(b"a" * 96)
    await bench.has(b"a" * 4096)
    bench.history.append(b"b")
    await bench.has(b"b")


async def test_that_it_grows_is_told_once(bench: Bench) -> None:
    log = await bench.begin(size=4096, keep=1)
    (bench.path.with_name("console.log.1") / "in the way").mkdir(parents=True)
    bench.history.append(b"a" * 5000)
    await bench.has(b"a" * 5000)
    for n in range(1, 4):
        bench.history.append(b"a")
        await bench.has(b"a" * (5000 + n))
        await log.settle()  # nothing to write
    assert len(bench.told) == 1 and "grows beyond its size" in bench.told[0]["error"]


async def test_one_that_was_emptied_begins_anew(bench: Bench) -> None:
    """As logrotate's copytruncate does."""
    await bench.begin(size=8192)
    bench.history.append(b"x" * 8000)
    await bench.has(b"x" * 8000)
    os.truncate(bench.path, 0)
    bench.history.append(b"y" * 1000)
    await bench.has(b"y" * 1000)
    assert [path.name for path in bench.path.parent.iterdir()] == ["console.log"]


async def test_the_next_one_has_what_could_not_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is full, and the log moves to another one."""
    monkeypatch.setattr(logfile, "GRACE", 0.05)
    full = await bench.begin()
    write, fd = os.write, full._fd

    def broken(to: int, data: bytes) -> int:
        if to == fd:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(to, data)

    monkeypatch.setattr(logfile.os, "write", broken)
    bench.history.append(b"one ")
    await bench.until(lambda: bool(bench.told))
    bench.history.append(b"two")
    await bench.begin(path=bench.path.with_name("elsewhere"), before=full)
    await bench.has(b"one two", bench.path.with_name("elsewhere"))
