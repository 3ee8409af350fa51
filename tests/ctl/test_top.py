"""top: rates between two looks, one table for programs, and a screen that leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.ctl.terminal import Session, Terminal, late_signal
from tests.fakes.service import FakeService
from xenpvd.config import DiskConfig
from xenpvd.ctl import top
from xenpvd.ctl.console import TICK, ended_by_signals
from xenpvd.ctl.top import Row, Sample
from xenpvd.views import Runstate

MIB = 1 << 20


def sample(at: float, life: tuple[float, int] | None = (1.0, 1), **counts: Any) -> Sample:
    return Sample(at, "running", life, 300 * MIB, **counts)


def test_rates_are_per_second() -> None:
    before = sample(10.0, cpu=4.0, read=0, written=MIB, hypercalls=7, console=100)
    now = sample(12.0, cpu=7.0, read=4 * MIB, written=MIB, hypercalls=10, console=101)
    row = Row.between("web1", before, now)
    assert row == Row("web1", "running", 150.0, 300 * MIB, 2.0 * MIB, 0.0, 1.5, 0.5)
    assert row.cells() == ("web1", "running", "150", "300", "2.0 MiB", "0 B", "2", "0 B")


@pytest.mark.parametrize(
    "before",
    [None, Sample(10.0, "dead"), sample(10.0, (1.0, 0)), sample(10.0, (0.5, 1)), sample(12.0)],
    ids=["none", "dead", "another life", "another daemon", "no time"],
)
def test_there_are_no_rates_without_a_look_before_at_the_same_counters(before: Sample | None) -> None:
    row = Row.between("web1", before, sample(12.0, cpu=1.0))
    assert row.cells() == ("web1", "running", "-", "300", "-", "-", "-", "-")


def test_what_has_gone_is_not_less_than_nothing() -> None:
    """A disk that was removed took its counts along."""
    row = Row.between("web1", sample(10.0, read=MIB, written=5), sample(11.0, read=0, written=9))
    assert (row.read_bytes, row.write_bytes) == (0, 4)


@pytest.fixture
def service(daemon: Daemon) -> FakeService:
    daemon.wait(daemon.service.drive_add(DiskConfig(vdev="xvda", target="/a"), False, 1))
    return daemon.service


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, daemon: Daemon) -> list[Callable[[], None]]:
    """What happens in the daemon between two looks, which are 2 s apart."""
    acts: list[Callable[[], None]] = []
    clock = [100.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        for act in acts:
            daemon.do(act)

    monkeypatch.setattr(top, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    return acts


def test_one_table(
    xenpvctl: Xenpvctl, service: FakeService, dead: str, meanwhile: list[Callable[[], None]]
) -> None:
    def work() -> None:
        service.cpu_seconds += 1.0
        service.console.print(b"x" * 4096)

    meanwhile.append(work)
    assert xenpvctl("top", "--once").stdout.splitlines() == [
        "NAME  STATE    CPU%  MEM  READ/s  WRITE/s  HCALL/s  CONSOLE/s",
        "gone  dead        -    -       -        -        -          -",
        "web1  running    50  300     0 B      0 B        0    2.0 KiB",
    ]
    assert xenpvctl("top", "web1").stdout.count("\n") == 2, "so it is without a terminal"
    (row,) = xenpvctl.json("top", "web1", "--interval", "0.5")
    assert row == {
        "name": "web1",
        "state": "running",
        "cpu_percent": 200.0,
        "resident": 300 * MIB,
        "read_bytes": 0.0,
        "write_bytes": 0.0,
        "hypercalls": 0.0,
        "console_bytes": 8192.0,
    }


def test_guests_that_come_go_and_do_not_answer(
    xenpvctl: Xenpvctl, service: FakeService, meanwhile: list[Callable[[], None]]
) -> None:
    meanwhile.append(lambda: service.move(Runstate.STOPPED))
    assert xenpvctl("top", "--once").stdout.splitlines()[1].split()[:4] == ["web1", "stopped", "0", "-"]
    meanwhile.append(lambda: service.faults.update(guest_stats=RuntimeError("ours")))
    service.hold("guest_stats").open.set()
    assert xenpvctl("top", "--once").stdout.splitlines()[1].split()[:3] == ["web1", "no", "answer"]


def test_a_name_that_is_none(xenpvctl: Xenpvctl, service: FakeService, dead: str) -> None:
    assert "no guest called web2" in xenpvctl("top", "web1", "web2", status=3).stderr
    assert "gone is dead" in xenpvctl("top", dead, status=3).stderr
    assert xenpvctl("top", "--interval", "0", status=2)


def test_no_guests_are_an_empty_table(
    xenpvctl: Xenpvctl, meanwhile: list[Callable[[], None]], run_dir: Path
) -> None:
    xenpvctl.run_dir = run_dir / "none"
    assert xenpvctl("top").stdout.startswith("NAME  STATE")
    assert xenpvctl.json("top") == []


# -- the screen


def begun(session: Session) -> None:
    session.expect("\x1b[?1049h\x1b[?25l")
    session.expect("guests: 1, running: 1  (q ends)")
    session.expect("web1")


def left(session: Session) -> None:
    session.expect("\x1b[?25h\x1b[?1049l")


@pytest.mark.parametrize(
    ("key", "status"), [(b"q", 0), (b"Q", 0), (b"\x03", 130), (b"\x04", 0), (b"xyzq", 0)]
)
def test_a_key_ends_it(run_dir: Path, service: FakeService, key: bytes, status: int) -> None:
    with Terminal(run_dir)("top", "--interval", "3600") as session:
        begun(session)
        assert session.attributes != session.before
        session.type(key)
        left(session)
        assert session.end() == status


def test_it_goes_on(run_dir: Path, daemon: Daemon, service: FakeService) -> None:
    with Terminal(run_dir)("top", "--interval", "0.1") as session:
        begun(session)
        session.expect("web1" + " " * 2 + "running")
        daemon.do(lambda: service.move(Runstate.PAUSED))
        session.expect("running: 0")
        session.expect("paused")
        session.type(b"q")
        assert session.end() == 0


def test_another_key_looks_at_once(run_dir: Path, daemon: Daemon, service: FakeService) -> None:
    with Terminal(run_dir)("top", "--interval", "3600") as session:
        begun(session)
        daemon.do(lambda: service.move(Runstate.PAUSED))
        session.type(b" ")
        session.expect("paused")
        session.type(b"q")
        assert session.end() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_leaves_the_terminal_as_it_was(run_dir: Path, service: FakeService, signum: int) -> None:
    with Terminal(run_dir)("top", "--interval", "3600") as session:
        begun(session)
        session.process.send_signal(signum)
        left(session)
        assert session.end() == 128 + signum


def test_a_daemon_that_ends_is_a_row(run_dir: Path, daemon: Daemon, service: FakeService) -> None:
    with Terminal(run_dir)("top", "--interval", "0.1", "web1") as session:
        begun(session)
        daemon.end()
        session.expect("dead")
        session.type(b"q")
        left(session)
        assert session.end() == 0


def test_it_fits_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "5")
    shown: list[str] = []
    monkeypatch.setattr(top, "_put", shown.append)
    top._show([Row.between(f"web{n}", None, sample(time.monotonic())) for n in range(9)])
    lines = re.sub(r"\x1b\[[A-Z]", "", shown[0]).split("\r\n")
    assert len(lines) == 5 and lines[-1] == "and 8 more" and lines[-2].startswith("web0")
    assert max(map(len, lines)) == 30


def test_a_signal_just_before_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    real = select.select

    def late(*args: Any) -> Any:
        assert args[3] <= TICK
        with late_signal():
            return real(*args)

    monkeypatch.setattr(select, "select", late)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        with ended_by_signals(), pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            top._quit(3600)
