"""events, call."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.ctl.terminal import Terminal
from tests.fakes.service import FakeService


def test_events(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    daemon.do(
        lambda: daemon.service.events.publish("drive.added", vdev="xvdb", why="two\n words", n={"a": 1})
    )
    daemon.do(lambda: daemon.service.events.publish("log.record"))
    (line,) = xenpvctl("events", "web1", "drive.*").stdout.splitlines()
    assert line.endswith(r'1 drive.added vdev=xvdb why="two\n words" n={"a":1}')
    lines = xenpvctl("events", "web1", "--json").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["drive.added", "log.record"]


@pytest.mark.parametrize("names", [[], ["on_crash"], ["on_crash", "memory"]])
def test_lists_have_one_shape(xenpvctl: Xenpvctl, daemon: Daemon, names: list[str]) -> None:
    daemon.do(lambda: daemon.service.events.publish("daemon.reloaded", applied=names))
    (line,) = xenpvctl("events", "web1").stdout.splitlines()
    assert line.endswith(f" applied={json.dumps(names, separators=(',', ':'))}")


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


@pytest.mark.parametrize(
    ("verb", "first"), [("events web1 -f", "drive.added"), ("xenstore-watch web1 /tool", "/tool")]
)
def test_following_is_interrupted(run_dir: Path, daemon: Daemon, verb: str, first: str) -> None:
    """As shells expect it of what ^C has ended."""
    daemon.do(lambda: daemon.service.events.publish("drive.added", vdev="xvdb"))
    with Terminal(run_dir)(*verb.split()) as session:
        session.expect(first)
        session.process.send_signal(signal.SIGINT)
        assert session.end() == 130
    assert "Traceback" not in session.seen


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
        (["path=/a", "path=/b"], None),
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
