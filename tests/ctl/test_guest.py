"""list, status, shutdown, destroy."""

from __future__ import annotations

from pathlib import Path

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.errors import StateError, TimedOut


def test_list(xenpvctl: Xenpvctl, daemon: Daemon, dead: str) -> None:
    xenpvctl("drive", "add", "web1", "xvdb", "/srv/b")
    assert xenpvctl("list").stdout.splitlines() == [
        "NAME  STATE    VCPUS  MEM  UPTIME  DRIVES",
        "gone  dead     -      -    -       -",
        "web1  running  1      512  3m12s   xvdb",
    ]
    gone, web1 = xenpvctl.json("list")
    assert gone == {"name": "gone", "state": "dead", "drives": []}
    assert (web1["state"], web1["drives"]) == ("running", ["xvdb"])


def test_list_goes_on_past_a_daemon_in_trouble(xenpvctl: Xenpvctl, service: FakeService) -> None:
    service.faults["guest_status"] = ValueError("broken")
    assert xenpvctl.json("list") == [{"name": "web1", "state": "no answer", "drives": []}]


def test_list_of_nothing(xenpvctl: Xenpvctl) -> None:
    assert xenpvctl.json("list") == []


def test_status(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    xenpvctl("drive", "add", "web1", "xvdb", "/srv/b", "--ro")
    lines = dict(line.split(":", 1) for line in xenpvctl("status", "web1").stdout.splitlines())
    assert lines["state"].strip() == "running"
    assert lines["boot"].strip() == "shim 0.20 s, devices 1.50 s"
    assert lines["xvdb"].strip() == "/srv/b, ro, 1.0 MiB, Connected"
    assert lines["accel"].strip() == "kvm-xen (KVM_CAP_XEN_HVM)"
    assert xenpvctl.json("status", "web1")["drives"][0]["vdev"] == "xvdb"


def test_shutdown(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("shutdown", "web1").stdout == "web1 is stopped after 1.5 s\n"
    assert xenpvctl.json("shutdown", "web1", "--reboot")["mode"] == "reboot"
    service.faults["guest_shutdown"] = TimedOut("the guest has not answered")
    failed = xenpvctl("shutdown", "web1", "--timeout", "1", status=4)
    assert failed.stderr == "xenpvctl: the guest has not answered\n"
    service.faults["guest_shutdown"] = StateError("it is stopped", "stopped", ["running"])
    assert xenpvctl.json("shutdown", "web1", status=1)["error"]["data"]["state"] == "stopped"


def test_destroy(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("destroy", "web1").stdout == "web1 is stopped\n"
    assert service.done == ["guest_destroy"]


def test_no_such_guest(xenpvctl: Xenpvctl, run_dir: Path, dead: str) -> None:
    for verb in ("status", "shutdown", "destroy", "console", "log", "events", "xenstore-ls"):
        missing = xenpvctl(verb, "web2", status=3)
        assert missing.stderr == (
            f"xenpvctl: no guest called web2: {run_dir}/web2/rpc.sock is missing. "
            "Start it with: xenpvctl start web2\n"
        )
        assert "gone is dead" in xenpvctl(verb, dead, status=3).stderr
    assert "no guest can be called" in xenpvctl.json("status", "../x", status=3)["error"]["message"]


def test_usage(xenpvctl: Xenpvctl) -> None:
    xenpvctl("status", status=2)
    xenpvctl("fly", "web1", status=2)
