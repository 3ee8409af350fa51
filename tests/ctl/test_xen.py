"""evtchn, grant, hypercalls."""

from __future__ import annotations

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.views import Runstate


def test_evtchn_list(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    assert xenpvctl("evtchn", "list", "web1").stdout.splitlines() == [
        "PORT  VCPU  TYPE         REMOTE  TARGET  FLAGS",
        "   1     0  interdomain       0       5  -",
        "   2     0  virq              -       0  pending masked",
        "   3     1  ipi               -       -  -",
    ]
    assert xenpvctl.json("evtchn", "list", "web1")[0]["remote-domain"] == "0"


def test_evtchn_inject(xenpvctl: Xenpvctl, service: FakeService) -> None:
    said = xenpvctl("evtchn", "inject", "web1", "1").stdout
    assert said == "event raised on port 1 (interdomain, vCPU 0)\n"
    assert service.ports[1].pending
    assert xenpvctl("evtchn", "inject", "web1", "2").stdout.endswith("; the guest has it masked\n")
    assert "port 9 is closed" in xenpvctl("evtchn", "inject", "web1", "9", status=1).stderr
    assert "must be at most 4095" in xenpvctl("evtchn", "inject", "web1", "4096", status=2).stderr
    service.state = Runstate.STOPPED
    xenpvctl("evtchn", "inject", "web1", "1", status=1)


def test_grant_list(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    assert xenpvctl("grant", "list", "web1").stdout.splitlines() == [
        "GREF  DOMID  FRAME  ACCESS  IN USE           MAPS",
        "   1      0  feffc  rw      reading writing     1",
        "   8      0  12345  ro      -                   0",
    ]
    assert xenpvctl.json("grant", "list", "web1")[1]["readonly"] is True


def test_hypercalls(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    counts = [
        "hypercalls: 42",
        "exits:      xen 42, io 7",
        "",
        "OPERATION   COUNT  FAILED",
        "send           30  -",
        "physdev_op     12  11 ENOSYS",
    ]
    assert xenpvctl("hypercalls", "web1").stdout.splitlines() == counts
    assert xenpvctl("hypercalls", "web1", "--recent", "9").stdout.splitlines() == [
        *counts,
        "",
        "SEQ  VCPU  OPERATION   RESULT   ARGUMENTS",
        " 40     0  version     0x40011  0 0",
        " 41     0  send        0        5",
        " 42     1  physdev_op  ENOSYS   18 ffff830000007f68",
    ]
    assert xenpvctl.json("hypercalls", "web1", "--recent", "1")["recent"][0]["result"] == -38
    assert "not in the range 0<=x<=256" in xenpvctl("hypercalls", "web1", "--recent", "257", status=2).stderr
