"""list, status, and the verbs of a guest's life."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd import paths
from xenpvd.errors import StateError, TimedOut
from xenpvd.views import Runstate


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


def test_list_of_nothing(xenpvctl: Xenpvctl, run_dir: Path) -> None:
    assert xenpvctl.json("list") == []
    run_dir.rmdir()
    assert xenpvctl.json("list") == []


def test_list_of_all(
    xenpvctl: Xenpvctl, run_dir: Path, tmp_path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    for name in ("web1", "web2", "gateway", "No name"):
        (tmp_path / f"{name}.toml").touch()
    (run_dir / "web3").mkdir()
    (run_dir / "web3" / "definition").symlink_to("/srv/web3.toml")  # it was started from there
    assert [(guest["name"], guest["state"]) for guest in xenpvctl.json("list", "--all")] == [
        ("web1", "running"),
        ("web2", "off"),
        ("web3", "off"),
    ]
    lines = xenpvctl("list", "-a").stdout.splitlines()
    assert lines[0].split()[-1] == "FILE" and lines[1].split()[-1] == "-"
    assert "web2  off      -" in lines[2] and lines[2].endswith(f"  {tmp_path}/web2.toml")
    assert [guest["name"] for guest in xenpvctl.json("list")] == ["web1"]


def test_list_goes_by_the_name_in_the_file(
    xenpvctl: Xenpvctl, run_dir: Path, tmp_path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is whom start starts; the file's own name is nobody's, or somebody else's."""
    etc = tmp_path / "etc"
    etc.mkdir()
    monkeypatch.setattr(paths, "config_dirs", lambda: [etc])
    for file, text in {
        "db": 'name = "other"',
        "mine": 'name = "web1"',  # it runs
        "web1": 'name = "third"',
        "bad1": "name =",
        "bad2": "name = 3",
    }.items():
        (etc / f"{file}.toml").write_text(text)
    (etc / "bad3.toml").mkdir()
    (run_dir / "other").mkdir()
    (run_dir / "other" / "definition").symlink_to(etc / "db.toml")  # it was started before: no second one
    off = {guest["name"]: guest["file"] for guest in xenpvctl.json("list", "--all")[1:]}
    assert off == {
        "other": f"{etc}/db.toml",
        "third": f"{etc}/web1.toml",
        **{bad: f"{etc}/{bad}.toml" for bad in ("bad1", "bad2", "bad3")},
    }
    assert len(xenpvctl.json("list", "--all")) == 1 + len(off)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else: run it as root")
def test_list_tells_what_it_does_not_list(
    xenpvctl: Xenpvctl, run_dir: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir.parent.chmod(0o755)
    monkeypatch.chdir(run_dir.parent)  # so that nobody need look into the folders above
    xenpvctl.run_dir = Path("run")
    for name in ("web2", "web3"):
        (run_dir / name).mkdir(mode=0o700)
    (run_dir / "web1").chmod(0o755)
    (run_dir / "web1" / "rpc.sock").chmod(0o666)
    os.seteuid(65534)
    try:
        listed, top = xenpvctl("list"), xenpvctl("top", "--once", "--interval", "0.1")
        os.seteuid(0)
        run_dir.chmod(0o700)
        os.seteuid(65534)
        shut = xenpvctl("list", status=1).stderr
    finally:
        os.seteuid(0)
    assert "web1  running" in listed.stdout
    assert listed.stderr == top.stderr
    assert listed.stderr == (
        "xenpvctl: 2 guests not listed: no permission for run/web2, run/web3. "
        "Use sudo, or join the group that owns it.\n"
    )
    assert shut == "xenpvctl: cannot look into run: no permission. Use sudo.\n"


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
    service.lazy = True
    ended = xenpvctl("shutdown", "web1", "--destroy").stdout
    assert ended == "web1 is stopped after 1.5 s (it did not end by itself and was destroyed)\n"
    service.faults["guest_shutdown"] = TimedOut("the guest has not answered")
    failed = xenpvctl("shutdown", "web1", "--timeout", "1", status=4)
    assert failed.stderr == "xenpvctl: the guest has not answered\n"
    service.faults["guest_shutdown"] = StateError("it is stopped", "stopped", ["running"])
    assert xenpvctl.json("shutdown", "web1", status=1)["error"]["data"]["state"] == "stopped"


def test_reboot(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl.json("reboot", "web1")["mode"] == "reboot"
    assert xenpvctl("reboot", "web1").stdout == "web1 is stopped after 1.5 s\n"
    service.faults["guest_shutdown"] = TimedOut("the guest has not answered")
    xenpvctl("reboot", "web1", "--timeout", "1", status=4)


def test_pause_resume_reset(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("pause", "web1").stdout == "web1 is paused\n"
    assert "web1  paused  1      512  3m12s" in xenpvctl("list").stdout
    assert "state:      paused" in xenpvctl("status", "web1").stdout
    assert xenpvctl("resume", "web1").stdout == "web1 is running\n"
    assert xenpvctl.json("unpause", "web1")["state"] == "running"
    assert xenpvctl("reset", "web1").stdout == "web1 is running\n"
    assert service.done == ["guest_pause", "guest_resume", "guest_resume", "guest_reset"]
    service.state = Runstate.STOPPED
    for verb in ("pause", "resume", "reset"):
        assert "web1 is stopped" in xenpvctl(verb, "web1", status=1).stderr


def test_sysrq(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("sysrq", "web1", "h").stdout == "web1 took sysrq h\n"
    assert xenpvctl.json("sysrq", "web1", "8") == {"key": "8"}
    failed = xenpvctl("sysrq", "web1", "help", status=2)
    assert failed.stderr == (
        "xenpvctl: cannot use KEY: it must be one letter or digit, as s. See: xenpvctl sysrq --help\n"
    )
    service.faults["guest_sysrq"] = TimedOut("the guest has not taken it")
    xenpvctl("sysrq", "web1", "h", "--timeout", "0", status=4)
    told = xenpvctl("sysrq", "--help").stdout
    assert "does not mean that it did" in " ".join(told.split()) and "kernel.sysrq" in told


def test_destroy(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("destroy", "web1").stdout == "web1 is stopped\n"
    assert service.done == ["guest_destroy"]


def test_no_such_guest(xenpvctl: Xenpvctl, run_dir: Path, dead: str) -> None:
    life = ["pause", "resume", "reset", "reboot", "shutdown", "destroy"]
    for verb in ("status", *life, "console", "log", "events", "xenstore-ls", "hypercalls"):
        missing = xenpvctl(verb, "web2", status=3)
        assert missing.stderr == (
            f"xenpvctl: no guest called web2: {run_dir}/web2/rpc.sock is missing. "
            "Those that are there: xenpvctl list. Start it with its TOML file: xenpvctl start FILE.toml\n"
        )
        assert "gone is dead" in xenpvctl(verb, dead, status=3).stderr
    assert "no guest can be called" in xenpvctl.json("status", "../x", status=3)["error"]["message"]


def test_usage(xenpvctl: Xenpvctl) -> None:
    xenpvctl("status", status=2)
    xenpvctl("fly", "web1", status=2)
