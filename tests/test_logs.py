"""The daemon's own log: each format, what is kept, and levels that change while it runs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenpvd import logs
from xenpvd.errors import BadConfig, NotFound
from xenpvd.logs import Journal, Json, Ring

EXIT = "import sys; from xenpvd.__main__ import main; main()"


def record(text: str, *args: object, level: int = logging.INFO, fault: bool = False) -> logging.LogRecord:
    exc_info = None
    if fault:
        try:
            raise ValueError("wrong\nin two lines")
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord("xenpvd.guest", level, "file", 1, text, args, exc_info)


@pytest.mark.parametrize(
    ("level", "priority"),
    [("CRITICAL", 2), ("ERROR", 3), ("WARNING", 4), ("INFO", 6), ("DEBUG", 7)],
)
def test_the_journal_gets_a_priority(level: str, priority: int) -> None:
    line = Journal().format(record("%s", "hello", level=getattr(logging, level)))
    assert line == f"<{priority}>xenpvd.guest: hello"


def test_every_line_for_the_journal_has_its_priority() -> None:
    lines = Journal().format(record("it\nfailed", level=logging.ERROR, fault=True)).splitlines()
    assert lines[0] == "<3>xenpvd.guest: it\\x0afailed"
    assert len(lines) > 4 and all(line.startswith("<3>") for line in lines)
    assert lines[-2:] == ["<3>ValueError: wrong", "<3>in two lines"]


def test_json_is_an_object_a_line() -> None:
    plain, failed = Json().format(record("größe\n%d", 3)), Json().format(record("it", fault=True))
    assert "\n" not in plain + failed
    told = json.loads(plain)
    assert told.pop("time") > 1e9
    assert told == {"level": "info", "logger": "xenpvd.guest", "message": "größe\n3"}
    assert json.loads(failed)["traceback"].endswith("ValueError: wrong\nin two lines\n")


# -- what is kept


def test_the_newest_are_kept_in_order() -> None:
    ring = Ring(3)
    for n in range(5):
        ring.handle(record("no %d", n))
    assert [(told.seq, told.message) for told in ring.tail(9, "debug", "")] == [
        (3, "no 2"), (4, "no 3"), (5, "no 4"),
    ]  # fmt: skip
    assert [told.seq for told in ring.tail(1, "debug", "")] == [5]


def test_what_is_kept_is_bounded_and_whole() -> None:
    ring = Ring()
    ring.handle(record("x" * 100_000))
    ring.handle(record("it failed", fault=True))
    long, failed = ring.tail(9, "debug", "")
    assert len(long.message) == logs.TEXT_MAX
    assert failed.message.startswith("it failed\nTraceback") and failed.message.endswith("in two lines")


def test_by_level_and_logger() -> None:
    ring = Ring()
    for name in ("xenpvd.rpc", "xenpvd.rpc.http", "xenpvd.rpcx", "asyncio"):
        for level in (logging.DEBUG, logging.WARNING, logging.CRITICAL):
            ring.handle(logging.LogRecord(name, level, "", 1, "x", (), None))
    assert {told.logger for told in ring.tail(99, "debug", "xenpvd.rpc")} == {"xenpvd.rpc", "xenpvd.rpc.http"}
    assert [told.level for told in ring.tail(99, "warning", "asyncio")] == ["warning", "critical"]
    assert len(ring.tail(99, "error", "")) == 4
    assert ring.tail(99, "debug", "xenpvd.r") == []


def test_a_record_that_cannot_be_formatted_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    ring = Ring()
    ring.handle(record("%d", "x"))
    ring.handle(record("fine"))
    assert [told.message for told in ring.tail(9, "debug", "")] == ["fine"]
    assert "Logging error" in capsys.readouterr().err


# -- levels


@contextmanager
def as_a_daemon(level: str) -> Iterator[None]:
    """With our handlers in the place of pytest's; all is as before afterwards."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    root.handlers.clear()
    try:
        assert logs.configure("text", level) == "text"
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)
        logging.getLogger("xenpvd.rpc").setLevel(logging.NOTSET)


def test_levels_change_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with as_a_daemon("info"):
        levels_change(capsys)


def levels_change(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = logging.getLogger("xenpvd.rpc.connection"), logging.getLogger("xenpvd.guest")

    def told() -> list[str]:
        one.debug("one")
        other.debug("other")
        return [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines()]

    assert told() == []
    logs.set_level("xenpvd.rpc", "debug")
    assert told() == ["one"]
    assert logs.tail(1, "debug", "xenpvd.rpc")[0].message == "one"
    logs.set_level("", "debug")
    assert told() == ["one", "other"]
    logs.set_level("xenpvd.rpc", "error")
    assert told() == ["other"]
    logs.set_level("xenpvd.rpc", "inherit")
    assert told() == ["one", "other"]
    logs.set_level("", "warning")
    assert told() == []


def test_levels_that_cannot_be_set() -> None:
    before = set(logging.root.manager.loggerDict)
    with pytest.raises(NotFound, match=r"nothing logs by that name\. See the names in log\.tail"):
        logs.set_level("xenpvd.nonsense", "debug")
    assert set(logging.root.manager.loggerDict) == before, "a client cannot make loggers"
    with pytest.raises(BadConfig, match="nothing to inherit"):
        logs.set_level("", "inherit")


# -- what stderr is


def test_stderr_that_is_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "one").open("w") as one, (tmp_path / "other").open("w") as other:
        stat = os.fstat(one.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
        assert logs.is_journal(one.fileno())
        assert not logs.is_journal(other.fileno()), "the environment is inherited, stderr need not be"
        for wrong in ("", "1:2", "nonsense"):
            monkeypatch.setenv("JOURNAL_STREAM", wrong)
            assert not logs.is_journal(one.fileno())
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not logs.is_journal(one.fileno())
    assert not logs.is_journal(10**6), "it is closed"


@pytest.mark.parametrize(
    ("option", "journal", "begins"),
    [
        ("auto", False, "xenpvd: cannot read"),
        ("auto", True, "<2>xenpvd: cannot read"),
        ("journal", False, "<2>xenpvd: cannot read"),
        ("text", True, "xenpvd: cannot read"),
        ("json", True, '{"time": '),
    ],
)
def test_the_command(tmp_path: Path, option: str, journal: bool, begins: str) -> None:
    """How it says why it cannot start: in the journal that has its priority, too."""
    with (tmp_path / "stderr").open("w+") as stderr:
        stat = os.fstat(stderr.fileno())
        stream = f"{stat.st_dev}:{stat.st_ino}" if journal else "0:0"
        done = subprocess.run(
            [sys.executable, "-c", EXIT, "--config", str(tmp_path / "none.toml"), "--log-format", option],
            stderr=stderr,
            env={**os.environ, "JOURNAL_STREAM": stream},
            check=False,
            timeout=30,
        )
        stderr.seek(0)
        said = stderr.read()
    assert done.returncode == 2
    assert said.startswith(begins) and said.count("\n") == 1
    if option == "json":
        assert json.loads(said)["level"] == "critical" and "cannot read" in json.loads(said)["message"]
