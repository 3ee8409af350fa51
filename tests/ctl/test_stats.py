from __future__ import annotations

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.config import DiskConfig


@pytest.fixture
def service(daemon: Daemon) -> FakeService:
    service = daemon.service
    daemon.wait(service.drive_add(DiskConfig(vdev="xvda", target="/a"), False, 1))
    for ns in (200_000, 300_000, 3_000_000):
        daemon.do(lambda ns=ns: service.latency.note(ns))  # type: ignore[misc]
    daemon.do(lambda: service.console.print(b"x" * 2048))
    return service


def test_for_people(xenpvctl: Xenpvctl, service: FakeService) -> None:
    text = xenpvctl("stats", "web1").stdout
    for line in (
        "state:      running, up 3m12s, boots 3",
        "memory:     512 MiB, 300 resident",
        "hypercalls: 42, 11 failed",
        "ports:      interdomain 1, virq 1, ipi 1",
        "loop:       1 ms late, < 4 ms",
        "daemon:     12.5 s of CPU, 350 MiB resident, 40 descriptors, 6 threads",
        "   0  yes     4.50 s  0.50 s   1000",
        "xvda     10  10.0 MiB       5  5.0 MiB        1         0       2  1 ms, < 4 ms",
        "0        2.0 KiB    0 B        0       0 B",
    ):
        assert f"{line}\n" in text, text


def test_what_is_given_back_and_what_takes_long(
    xenpvctl: Xenpvctl, daemon: Daemon, service: FakeService
) -> None:
    service.target = 256 << 20
    daemon.do(lambda: service.latency.note(9_000_000_000))
    text = xenpvctl("stats", "web1").stdout
    assert "memory:     512 MiB, 256 given back, 300 resident\n" in text
    assert "2.3 s late, > 4.2 s\n" in text


def test_a_guest_that_is_none(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    daemon.wait(daemon.service.guest_destroy())
    text = xenpvctl("stats", "web1").stdout
    assert "state:      stopped, up -, boots 3\n" in text
    assert "memory:" not in text and "VCPU" not in text and "DISK" not in text
    assert "loop:       -\n" in text


def test_json_is_all_of_it(xenpvctl: Xenpvctl, service: FakeService) -> None:
    told = xenpvctl.json("stats", "web1")
    assert told["drives"][0]["requests"] == {"read": 10, "write": 5, "flush": 1, "discard": 0}
    assert sum(told["drives"][0]["latency"]["counts"]) == 3
    assert xenpvctl("stats", "nobody", status=3).stderr.startswith("xenpvctl: no guest called nobody")
