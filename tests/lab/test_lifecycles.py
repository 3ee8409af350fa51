"""How a guest's lives end and begin again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon

#: 100 in a row take a quarter of an hour in the lab: XENPVD_REBOOTS=100
REBOOTS = int(os.environ.get("XENPVD_REBOOTS", "4"))


def footprint(daemon: Daemon) -> dict[str, int]:
    process = Path(f"/proc/{daemon.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return {
        "fds": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "kib": int(status["RssAnon"].split()[0]),
        "nodes": len(daemon.call("xenstore.tree", path="/", depth=64)),
    }


@pytest.mark.timeout(120 + 30 * REBOOTS)
def test_reboots_in_a_row_leave_nothing_behind(daemon: Daemon) -> None:
    """The guest's own reboots, with the clock right in every life."""
    daemon.start().at_the_shell()
    seen = []
    for _ in range(REBOOTS):
        end = daemon.call("console.read", since=-1)["end"]
        daemon.call("console.write", text="reboot\n")
        daemon.wait(f"console:{assets.READY}", since=end)
        daemon.wait("devices")
        daemon.clock()
        seen.append(footprint(daemon))
    assert {row["fds"] for row in seen} == {seen[0]["fds"]}, seen
    assert {row["threads"] for row in seen} == {seen[0]["threads"]}, seen
    assert {row["nodes"] for row in seen} == {seen[0]["nodes"]}, seen
    # the guest's own memory is part of RssAnon, and not the same in every life
    assert seen[-1]["kib"] - seen[0]["kib"] < 64 * 1024, seen


def test_reset_pause_and_halt(daemon: Daemon) -> None:
    daemon.start("--paused")
    assert daemon.call("guest.status")["state"] == "paused"
    assert daemon.call("console.read", console="xen")["text"] == ""
    daemon.call("guest.resume")
    daemon.at_the_shell()
    end = daemon.call("console.read", since=-1)["end"]
    assert daemon.call("guest.reset")["state"] == "running"
    daemon.wait(f"console:{assets.READY}", since=end)
    ended = daemon.call("guest.shutdown", mode="halt", timeout=60)
    assert ended["acknowledged"] is not None and ended["state"] == "stopped"


def test_a_guest_that_crashes_again_and_again_is_restarted_ever_later(
    daemon: Daemon, definition: dict[str, Any]
) -> None:
    """P10."""
    # the kernel panics as soon as it looks for its init
    daemon.file.write_text(
        assets.toml({**definition, "on_crash": "restart", "cmdline": "console=hvc0 rdinit=/none panic=1"})
    )
    daemon.start()
    crashes: list[Any] = []
    while len(crashes) < 2:
        daemon.wait("running")
        daemon.wait("starting", timeout=60)
        crashes = daemon.call("events.history", names=["guest.crash"])
    assert crashes[0]["data"]["regs"]["rip"] and "Kernel panic" in crashes[0]["data"]["console_tail"]
    reasons = [
        event["data"]["reason"]
        for event in daemon.call("events.history", names=["guest.state"])
        if event["data"]["to"] == "starting"
    ]
    assert any("1 s" in (reason or "") for reason in reasons), reasons
    assert daemon.ctl("destroy", daemon.name).returncode == 0
    daemon.gone()


def test_a_watchdog_that_is_not_fed_ends_the_guest(daemon: Daemon, definition: dict[str, Any]) -> None:
    daemon.file.write_text(assets.toml({**definition, "on_watchdog": "preserve"}))
    daemon.start().at_the_shell()
    daemon.sh("insmod /lib/xen_wdt.ko timeout=6")
    daemon.call("console.write", text="exec 3>/dev/watchdog; echo x >&3; echo fed-$((1))\n")
    daemon.wait("console:fed-1")
    daemon.wait("crashed", timeout=60)
    (crash,) = daemon.call("events.history", names=["guest.crash"])
    assert crash["data"]["reason"] == "watchdog"
