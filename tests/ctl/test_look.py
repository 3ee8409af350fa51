"""log, events, call. (The console has its own test.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.ctl import look
from xenpvd.ctl.output import Failure
from xenpvd.ctl.rundir import RunDir
from xenpvd.errors import StateError
from xenpvd.views import ConsoleChunk, Runstate


def test_log(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    recorded = bytes(range(256)) * 1200  # more than two reads, and no UTF-8
    daemon.do(lambda: daemon.service.console.print(recorded))
    assert xenpvctl("log", "web1").stdout_bytes == recorded
    assert xenpvctl("log", "web1", "--stream", "xen").stdout == "(XEN) Xen version 4.17\n"
    found = xenpvctl.json("log", "web1", "--stream", "xen")
    assert found == {"stream": "xen", "start": 0, "end": 23, "text": "(XEN) Xen version 4.17\n"}
    xenpvctl("log", "web1", "--stream", "daemon", status=2)


def test_log_of_a_guest_that_never_stops_printing(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    """The log ends where it ended when it was asked for; what was read is printed though a read fails."""
    service, read = daemon.service, daemon.service.console_read
    reads = 0

    def console_read(*args: Any) -> ConsoleChunk:
        nonlocal reads
        reads += 1
        if reads > 6:
            raise StateError("read too often", "running", [])
        chunk = read(*args)
        service.console.print(b"y\n" * 100000)
        return chunk

    service.console_read = console_read  # type: ignore[method-assign,assignment]
    recorded = bytes(range(256)) * 1000
    daemon.do(lambda: service.console.print(recorded))
    assert xenpvctl("log", "web1").stdout_bytes == recorded
    reads = 4
    before = bytes(service.console.recorded)
    found = xenpvctl("log", "web1", status=1)
    assert found.stdout_bytes == before[: len(found.stdout_bytes)] != b""
    assert "read too often" in found.stderr


@pytest.mark.parametrize("state", [Runstate.RUNNING, Runstate.PAUSED])
def test_a_console_that_ends_while_its_guest_lives(
    run_dir: Path, service: FakeService, state: Runstate
) -> None:
    service.state = state
    with pytest.raises(Failure, match="this viewer was too slow"):
        look._explain_end(RunDir(run_dir), "web1")


def test_a_console_that_ends_with_its_guest(
    run_dir: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.state = Runstate.STOPPED
    look._explain_end(RunDir(run_dir), "web1")
    look._explain_end(RunDir(run_dir), "web2")
    assert capsys.readouterr().err == "web1 is stopped\nweb2 is gone\n"


def test_events(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    daemon.do(
        lambda: daemon.service.events.publish("drive.added", vdev="xvdb", why="two\n words", n={"a": 1})
    )
    daemon.do(lambda: daemon.service.events.publish("log.record"))
    (line,) = xenpvctl("events", "web1", "drive.*").stdout.splitlines()
    assert line.endswith(r'1 drive.added vdev=xvdb why="two\n words" n="{\"a\": 1}"')
    lines = xenpvctl("events", "web1", "--json").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["drive.added", "log.record"]


def test_events_follow_until_the_daemon_ends(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    daemon.do(lambda: daemon.service.events.publish("drive.added", vdev="xvdb"))
    publish = daemon.service.events.subscribe

    def subscribe(*args: object, **kwargs: object) -> object:
        """Once somebody follows, something happens and the daemon's connections end."""
        found = publish(*args, **kwargs)  # type: ignore[arg-type]
        daemon.service.events.publish("drive.removed", vdev="xvdb")
        daemon._loop.call_soon(lambda: daemon._loop.create_task(daemon._server.stop()))
        return found

    daemon.service.events.subscribe = subscribe  # type: ignore[method-assign,assignment]
    lines = xenpvctl("events", "web1", "-f", "drive.*").stdout.splitlines()
    assert [line.split()[3] for line in lines] == ["drive.added", "drive.removed"]


def test_call(xenpvctl: Xenpvctl, service: FakeService) -> None:
    added = xenpvctl("call", "web1", "drive.add", "vdev=xvdb", "target=/b", "wait=false").stdout
    assert json.loads(added)["connected_ms"] is None
    assert "\n  " in added
    assert xenpvctl("call", "web1", "drive.list", "--json").stdout.count("\n") == 1
    read = xenpvctl("call", "web1", "xenstore.read", "-", stdin='{"path": "/tool/name"}')
    assert json.loads(read.stdout)["text"] == "web1"
    assert "there is no method" in xenpvctl("call", "web1", "drive.lst", status=1).stderr


@pytest.mark.parametrize(
    ("params", "stdin"),
    [
        (["path"], None),
        (["=x"], None),
        (["-"], "[1]"),
        (["-"], "{"),
        (["path=1e400"], None),
        (["path=[NaN]"], None),
        (["-"], '{"path": -Infinity}'),
    ],
)
def test_call_with_parameters_that_are_none(
    xenpvctl: Xenpvctl, daemon: Daemon, params: list[str], stdin: str | None
) -> None:
    xenpvctl("call", "web1", "xenstore.read", *params, stdin=stdin, status=2)
