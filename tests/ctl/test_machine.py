"""vcpu and memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.views import Phase, Runstate


@pytest.fixture
def service(daemon: Daemon) -> FakeService:
    """Of a guest with two vCPUs."""
    daemon.service.config = daemon.service.config.model_copy(update={"vcpus": 2})
    return daemon.service


def test_vcpu_list(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("vcpu", "list", "web1").stdout.splitlines() == [
        "VCPU  ONLINE  STATE    EXITS",
        "   0  yes     running   1000",
        "   1  no      running   2000",
    ]
    service.state = Runstate.PAUSED
    assert [vcpu["state"] for vcpu in xenpvctl.json("vcpu", "list", "web1")] == ["paused", "paused"]
    service.state = Runstate.STOPPED
    for verb in (["vcpu", "list"], ["vcpu", "set"], ["memory", "show"], ["memory", "set"]):
        number = ["1" if verb[0] == "vcpu" else "64"] * (verb[1] == "set")
        assert "web1 is stopped" in xenpvctl(*verb, "web1", *number, status=1).stderr


def test_before_xenbus_nobody_knows_which_are_offline(xenpvctl: Xenpvctl, service: FakeService) -> None:
    status = service.guest_status
    service.guest_status = lambda: replace(status(), phase=Phase.KERNEL)  # type: ignore[method-assign]
    assert [line.split()[1] for line in xenpvctl("vcpu", "list", "web1").stdout.splitlines()[1:]] == [
        "yes",
        "-",
    ]


def test_vcpu_registers(xenpvctl: Xenpvctl, service: FakeService) -> None:
    lines = xenpvctl("vcpu", "list", "web1", "--regs").stdout.splitlines()
    assert lines[3:8] == [
        "",
        "vCPU 0",
        "     rax 000000000000002a     rsp ffff830000007f68     rip ffff82d040200123",
        "  rflags 0000000000000246     cr0 0000000080050033     cr3 000000001f000000",
        "    efer 0000000000000d01",
    ]
    assert lines[9] == "vCPU 1"
    assert max(map(len, lines)) <= 80
    assert xenpvctl.json("vcpu", "list", "web1", "--regs")[0]["regs"]["rip"] == 0xFFFF82D040200123


def test_vcpu_set(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("vcpu", "set", "web1", "2").stdout == "web1 uses 2 vCPUs after 0.2 s\n"
    assert xenpvctl.json("vcpu", "set", "web1", "1") == {"asked": 1, "online": [0], "confirmed": 0.25}
    service.lazy = True
    failed = xenpvctl("vcpu", "set", "web1", "2", "--timeout", "1", status=4)
    assert failed.stderr == "xenpvctl: the guest has not come to 2 CPUs: 0 is online.\n"
    asked = xenpvctl("vcpu", "set", "web1", "2", "--no-wait").stdout
    assert asked == "web1 is asked to use 2 vCPUs; now 1\n"
    assert "must be at least 1" in xenpvctl("vcpu", "set", "web1", "0", status=2).stderr
    xenpvctl("vcpu", "set", "web1", "two", status=2)
    xenpvctl("vcpu", "set", "web2", "1", status=3)


def test_memory_show(xenpvctl: Xenpvctl, service: FakeService) -> None:
    xenpvctl("memory", "set", "web1", "128")
    assert xenpvctl("memory", "show", "web1").stdout.splitlines() == [
        "ram:        512 MiB",
        "guest:      488 MiB",
        "target:     128 MiB",
        "ballooned:  384 MiB",
        "resident:   300 MiB (thp)",
        "",
        "REGION   GPA               MIB  RESIDENT  HUGE",
        "ram      0000000000000000  512       300   296",
        "special  00000000feff8000   <1        <1     0",
    ]
    assert xenpvctl.json("memory", "show", "web1")["regions"][0]["huge"] == 296 << 20


def test_memory_set(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("memory", "set", "web1", "128").stdout == "web1 uses 128 MiB after 1.5 s\n"
    (event,) = service.events.history(["memory.target"])
    assert event.data == {"asked_mib": 128, "reached_mib": 128}
    service.lazy = True
    xenpvctl("memory", "set", "web1", "256", "--timeout", "1", status=4)
    asked = xenpvctl("memory", "set", "web1", "256", "--no-wait").stdout
    assert asked == "web1 is asked to use 256 MiB; now 512 MiB\n"
    assert "must be at least 64" in xenpvctl("memory", "set", "web1", "1", status=2).stderr
