"""--timeout, and what ^C leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.ctl.client import Client
from xenpvd.views import Runstate

VERBS = [
    "vcpu set web1 1",
    "memory set web1 128",
    "shutdown web1",
    "reboot web1",
    "sysrq web1 h",
    "drive add web1 xvdb /b",
    "drive remove web1 xvdb",
    "channel add web1 c",
    "channel remove web1 c",
]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e400", "soon", ""])
@pytest.mark.parametrize("verb", [*VERBS, "start web1"])
def test_no_number_of_seconds(xenpvctl: Xenpvctl, daemon: Daemon, verb: str, seconds: str) -> None:
    failed = xenpvctl(*verb.split(), "--timeout", seconds, status=2)
    assert f"'--timeout': {seconds!r} is no number of seconds." in failed.stderr
    assert daemon.service.done == []


def test_what_is_left_to_the_client(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    """A verb with a plain number cannot send what is no JSON either."""
    failed = xenpvctl("drive", "add", "web1", "xvdb", "/b", "--ops", "1", "--burst", "nan", status=2)
    assert "cannot do this: a number is not finite" in failed.stderr
    assert daemon.service.drives == {}


@pytest.mark.parametrize(
    ("verb", "method", "stays"),
    [
        ("vcpu set web1 1", "vcpu.set_online", "Take it back with: xenpvctl vcpu set web1 N"),
        ("memory set web1 128", "memory.set_target", "Take it back with: xenpvctl memory set web1 MIB"),
        ("shutdown web1", "guest.shutdown", "that cannot be taken back."),
        ("shutdown web1 --destroy", "guest.shutdown", "It is destroyed when the time is up."),
        ("reboot web1", "guest.shutdown", "that cannot be taken back."),
        ("start {file}", "guest.wait", "End it with: xenpvctl destroy web1"),
    ],
)
def test_an_interrupted_verb_says_what_stays(
    xenpvctl: Xenpvctl,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: str,
    method: str,
    stays: str,
) -> None:
    call = Client.call

    def interrupted(self: Client, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == method:
            raise KeyboardInterrupt
        return call(self, name, *args, **kwargs)

    monkeypatch.setattr(Client, "call", interrupted)
    if verb.startswith("start"):
        service.state = Runstate.STOPPED
    file = tmp_path / "web1.toml"
    file.write_text('kernel = "/boot/vmlinuz"\n')
    args = [word.format(file=file) for word in verb.split()]
    failed = xenpvctl(*args, status=130)
    assert failed.stderr.startswith("xenpvctl: interrupted: web1 ")
    assert failed.stderr.endswith(f"{stays}\n")
    assert failed.stdout == ""
