from __future__ import annotations

from tests.ctl.conftest import Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.ctl.output import moment


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
