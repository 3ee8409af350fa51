"""A real guest's further consoles: from its definition, hot-added, over a reboot, and away again."""

from __future__ import annotations

from typing import Any

import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon


@pytest.fixture
def definition(definition: dict[str, Any]) -> dict[str, Any]:
    return definition | {"channel": [{"name": "org.example.agent"}]}


def talk(daemon: Daemon, channel: str, device: str, word: str) -> None:
    """Both ways: what the guest writes to ``device`` is recorded, and what is typed there it reads."""
    since = next(c["end"] for c in daemon.call("console.list") if c["console"] == channel)
    daemon.sh(f"stty -F {device} raw -echo; echo {word} > {device}; head -n 1 {device} > /tmp/{word} & true")
    daemon.call("console.wait", console=channel, regex=f"^{word}", since=since, timeout=30)
    daemon.call("console.write", console=channel, text=f"typed {word}\n")
    assert f"typed {word}" in daemon.sh(f"wait; cat /tmp/{word}")


def test_channels_of_a_real_guest(daemon: Daemon) -> None:
    daemon.start().at_the_shell()
    talk(daemon, "org.example.agent", "/dev/hvc1", "first")
    added = daemon.call("channel.add", name="second")
    assert added["changed"] and added["console"]["connected"] and added["console"]["number"] == 2
    talk(daemon, "second", "/dev/hvc2", "hot")
    name = daemon.call("xenstore.read", path="/local/domain/1/device/console/2/name")
    assert name["text"] == "second"

    end = daemon.call("console.read", since=-1)["end"]
    daemon.call("guest.shutdown", mode="reboot", timeout=60)
    daemon.wait(f"console:{assets.READY}", since=end)
    talk(daemon, "org.example.agent", "/dev/hvc1", "again")
    talk(daemon, "second", "/dev/hvc2", "kept")
    assert [c["boots"] for c in daemon.call("console.list") if c["number"]] == [2, 2]

    assert daemon.call("channel.remove", name="second")["removed"]
    devices = daemon.sh("ls /sys/bus/xen/devices").split()
    assert "console-1" in devices and "console-2" not in devices
    talk(daemon, "org.example.agent", "/dev/hvc1", "still")
    daemon.call("guest.shutdown", timeout=60)
    daemon.gone()
