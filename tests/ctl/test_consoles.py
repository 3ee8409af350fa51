"""log, viewers, kick, and how a console's end is told. (The terminal has its own test.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.ctl import consoles
from xenpvd.ctl.output import Failure
from xenpvd.ctl.rundir import RunDir
from xenpvd.errors import StateError
from xenpvd.views import ConsoleChunk, Runstate


def test_log(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    recorded = bytes(range(256)) * 1200  # more than two reads, and no UTF-8
    daemon.do(lambda: daemon.service.console.print(recorded))
    assert xenpvctl("log", "web1").stdout_bytes == recorded
    assert xenpvctl("log", "web1", "-c", "xen").stdout == "(XEN) Xen version 4.17\n"
    found = xenpvctl.json("log", "web1", "--console", "xen")
    assert found == {"console": "xen", "start": 0, "end": 23, "text": "(XEN) Xen version 4.17\n"}
    assert "Choose from 0, xen" in xenpvctl("log", "web1", "-c", "daemon", status=1).stderr


@pytest.mark.parametrize(
    ("since", "shown"), [("3", "lo!"), ("-2", "o!"), ("1h", "hello!"), ("1.5d", "hello!"), ("0s", "")]
)
def test_log_since(xenpvctl: Xenpvctl, daemon: Daemon, since: str, shown: str) -> None:
    daemon.do(lambda: daemon.service.console.print(b"hello!"))
    assert xenpvctl("log", "web1", "--since", since).stdout == shown


@pytest.mark.parametrize("since", ["", "x", "1w", "1:00", "-5m", "1e9"])
def test_a_since_that_is_none(xenpvctl: Xenpvctl, daemon: Daemon, since: str) -> None:
    assert "10m, 2h" in xenpvctl("log", "web1", "--since", since, status=2).stderr


def test_log_of_a_guest_that_never_stops_printing(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    """The log ends where it ended when it was asked for; what was read is printed though a read fails."""
    service, read = daemon.service, daemon.service.consoles.read
    reads = 0

    def console_read(*args: Any) -> ConsoleChunk:
        nonlocal reads
        reads += 1
        if reads > 6:
            raise StateError("read too often", "running", [])
        chunk = read(*args)
        service.console.print(b"y\n" * 100000)
        return chunk

    service.consoles.read = console_read  # type: ignore[method-assign,assignment]
    recorded = bytes(range(256)) * 1000
    daemon.do(lambda: service.console.print(recorded))
    assert xenpvctl("log", "web1").stdout_bytes == recorded
    reads = 4
    found = xenpvctl("log", "web1", status=1)
    assert found.stdout_bytes
    assert "read too often" in found.stderr


def test_viewers_and_kick(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    daemon.do(lambda: daemon.service.console.print(b"12345"))
    viewer = daemon.do(lambda: daemon.service.consoles.attach("0", "rw", 2, None, "somebody"))
    head, line = xenpvctl("viewers", "web1").stdout.splitlines()
    assert head.split() == ["VIEWER", "CONSOLE", "MODE", "FOR", "BEHIND", "WHO"]
    assert line.split() == [str(viewer.number), "0", "rw", "0s", "3", "somebody"]
    assert "is ended" in xenpvctl("kick", "web1", str(viewer.number)).stdout
    assert xenpvctl.json("viewers", "web1") == []
    assert "no viewer" in xenpvctl("kick", "web1", str(viewer.number), status=1).stderr


@pytest.mark.parametrize("state", [Runstate.RUNNING, Runstate.STOPPED])
def test_a_console_that_was_cut_off(run_dir: Path, daemon: Daemon, state: Runstate) -> None:
    daemon.service.state = state
    viewer = daemon.do(lambda: daemon.service.consoles.attach("0", "ro", None, None, "me"))
    daemon.do(lambda: daemon.service.consoles.kick(viewer.number, "the boss"))
    with pytest.raises(Failure, match=r"was cut off: ended by the boss\. Attach again"):
        consoles._explain_end(RunDir(run_dir), "web1", viewer.number)


def test_a_console_that_ends_with_its_guest(
    run_dir: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.state = Runstate.STOPPED
    consoles._explain_end(RunDir(run_dir), "web1", 99999)
    consoles._explain_end(RunDir(run_dir), "web2", 99999)
    assert capsys.readouterr().err == "web1 is stopped\nweb2 is gone\n"
