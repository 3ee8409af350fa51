from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.ctl.output import moment
from xenpvd.errors import BadConfig
from xenpvd.views import Reloaded, Runstate


def test_the_log(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("daemon-log", "web1").stdout == (
        f"{moment(1795792071.25)} info    xenpvd.guest: a life begins\n"
        f"{moment(1795792072.5)} error   xenpvd.rpc.errors: incident 1\nTraceback:\n  \\x1b[31m\n"
    )
    assert len(xenpvctl.json("daemon-log", "web1", "-n", "1", "--level", "error", "--logger", "xenpvd")) == 1
    assert service.done == ["log_tail 100 debug ", "log_tail 1 error xenpvd"]
    xenpvctl("daemon-log", "web1", "-n", "0", status=2)


def test_its_level(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("log-level", "web1", "debug").stdout == "web1 logs debug\n"
    told = xenpvctl("log-level", "web1", "inherit", "xenpvd.rpc").stdout
    assert told == "web1 logs inherit of xenpvd.rpc\n"
    assert service.levels == {"": "debug", "xenpvd.rpc": "inherit"}
    assert "nothing logs by that name" in xenpvctl("log-level", "web1", "info", "no.such", status=1).stderr
    xenpvctl("log-level", "web1", "loud", status=2)


def test_reload(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("reload", "web1").stdout == (
        "applied: on_crash, console.log_max\nat the next start: memory\nwith a new daemon: access.viewer\n"
    )
    service.reloaded = Reloaded((), (), ())
    assert xenpvctl("reload", "web1").stdout == "nothing has changed\n"
    service.faults["daemon_reload"] = BadConfig("cannot use web1.toml: memory: too small.", [("memory", "m")])
    assert "memory: too small" in xenpvctl("reload", "web1", status=2).stderr


def test_quit(xenpvctl: Xenpvctl, daemon: Daemon, run_dir: Path) -> None:
    """It comes back when the name is free."""
    service, lock = daemon.service, (run_dir / "web1" / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert "what becomes of it: --shutdown or --destroy." in xenpvctl("quit", "web1", status=1).stderr
    assert service.done == []
    released: list[bool] = []

    def end() -> None:
        daemon.wait(service.quitting.wait())
        daemon.end()
        released.append(True)
        lock.close()

    ending = threading.Thread(target=end)
    ending.start()
    assert xenpvctl("quit", "web1", "--shutdown").stdout == "the daemon of web1 has ended\n"
    assert released and service.done == ["daemon_quit shutdown"]
    ending.join()
    xenpvctl("quit", "web1", "--destroy", status=3)


@pytest.mark.parametrize(("option", "how"), [((), "fail"), (("--destroy",), "destroy")])
def test_quit_without_a_guest(xenpvctl: Xenpvctl, daemon: Daemon, option: tuple[str, ...], how: str) -> None:
    service = daemon.service
    service.state = Runstate.DEFINED
    ending = threading.Thread(target=lambda: (daemon.wait(service.quitting.wait()), daemon.end()))
    ending.start()
    assert xenpvctl.json("quit", "web1", *option) == {"stopping": True}
    ending.join()
    assert service.done == [f"daemon_quit {how}"]
