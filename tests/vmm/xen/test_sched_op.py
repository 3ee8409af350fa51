"""sched_op, for callers of both widths."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import DOMID, Bench
from xenpvd.abi import sched as s
from xenpvd.abi import xen as x

SCHED = x.HYPERVISOR_sched_op
SECOND = 1_000_000_000


@pytest.mark.parametrize("reason", [*range(256), 2**32 - 1])
def test_shutdown(bench: Bench, reason: int) -> None:
    """E15."""
    result = bench.ask(SCHED, s.SCHEDOP_shutdown, s.sched_shutdown, reason)[0]
    if reason in (0, 1, 3, 4):
        assert (result, bench.platform.calls) == (0, [("shutdown", reason)])
    else:  # suspend among them: the guest cancels it and goes on
        assert (result, bench.platform.calls) == (-x.EINVAL, [])


def test_a_guest_ends_once(bench: Bench) -> None:
    """E15: one state change, whatever other vCPUs still ask for."""
    for reason in (2, s.SHUTDOWN_reboot, s.SHUTDOWN_poweroff, s.SHUTDOWN_crash):
        bench.ask(SCHED, s.SCHEDOP_shutdown, s.sched_shutdown, reason)
    assert bench.platform.calls == [("shutdown", s.SHUTDOWN_reboot)]


def test_the_reason_can_be_said_before(bench: Bench) -> None:
    def say(op: int, reason: int) -> int:
        return bench.ask(SCHED, op, s.sched_shutdown, reason)[0]

    assert say(s.SCHEDOP_shutdown_code, s.SHUTDOWN_suspend) == -x.EINVAL
    assert say(s.SCHEDOP_shutdown_code, s.SHUTDOWN_crash) == 0
    assert say(s.SCHEDOP_shutdown_code, s.SHUTDOWN_poweroff) == 0, "the first counts"
    assert bench.platform.calls == []
    assert say(s.SCHEDOP_shutdown, s.SHUTDOWN_reboot) == 0
    assert bench.platform.calls == [("shutdown", s.SHUTDOWN_crash)]


@pytest.mark.parametrize(
    "domid, error", [(0, x.EPERM), (DOMID, x.EPERM), (2, x.ESRCH), (x.DOMID_SELF, x.ESRCH)]
)
def test_nobody_is_stopped_from_afar(bench: Bench, domid: int, error: int) -> None:
    asked = bench.ask(SCHED, s.SCHEDOP_remote_shutdown, s.sched_remote_shutdown, domid, 0)
    assert asked[0] == -error
    assert bench.platform.calls == []


@pytest.mark.parametrize("op", [s.SCHEDOP_yield, s.SCHEDOP_block])
def test_waiting_is_over_at_once(bench: Bench, op: int) -> None:
    assert bench.call(SCHED, op, bench.nowhere) == 0


# -- poll


def poll(bench: Bench, *ports: int, count: int | None = None, at: int = 0) -> int:
    array = at or bench.arg + 0x100
    bench.virtual.write(array, b"".join(port.to_bytes(4, "little") for port in ports))
    fields = array, len(ports) if count is None else count, 10 * SECOND
    return bench.ask(SCHED, s.SCHEDOP_poll, s.sched_poll, *fields)[0]


def test_poll_returns_whether_or_not_one_is_pending(bench: Bench) -> None:
    assert poll(bench) == poll(bench, 1, 2, 3) == poll(bench, *range(1, 129)) == 0
    bench.delivery.pending.add(2)
    assert poll(bench, 1, 2, 3) == 0


def test_poll_of_ports_that_are_not_there(bench: Bench) -> None:
    assert poll(bench, 1, 4096) == poll(bench, 0) == poll(bench, 2**32 - 1) == -x.EINVAL
    bench.delivery.pending.add(1)
    assert poll(bench, 1, 4096) == 0, "it looks no further than the first that is pending"


@pytest.mark.parametrize("count", [129, 4064, 2**31, 2**32 - 1])
def test_poll_of_too_many(bench: Bench, count: int) -> None:
    """E5 (XSA-221)."""
    assert poll(bench, 1, count=count) == -x.EINVAL


def test_poll_of_an_array_nowhere(bench: Bench) -> None:
    assert poll(bench, count=1, at=bench.nowhere) == -x.EFAULT
    assert poll(bench, count=128, at=bench.nowhere - 4) == -x.EFAULT


# -- watchdogs


def watchdog(bench: Bench, ident: int, timeout: int) -> int:
    return bench.ask(SCHED, s.SCHEDOP_watchdog, s.sched_watchdog, ident, timeout)[0]


def test_a_watchdog_that_nobody_pats_ends_the_guest(bench: Bench) -> None:
    start = bench.platform.now
    assert watchdog(bench, 0, 30) == 1
    assert watchdog(bench, 0, 60) == 2
    assert watchdog(bench, 0, 60) == -x.ENOSPC
    bench.platform.now += 20 * SECOND
    assert watchdog(bench, 1, 30) == 0
    bench.platform.expire(("watchdog", 1))
    assert bench.platform.now == start + 50 * SECOND
    assert bench.platform.calls == [("shutdown", s.SHUTDOWN_watchdog)]
    bench.platform.expire(("watchdog", 2))
    assert len(bench.platform.calls) == 1


def test_a_watchdog_is_given_back(bench: Bench) -> None:
    assert watchdog(bench, 0, 30) == 1
    assert watchdog(bench, 1, 0) == 0
    assert bench.platform.armed == {}
    assert watchdog(bench, 1, 30) == watchdog(bench, 1, 0) == -x.EINVAL, "it is nobody's now"
    assert watchdog(bench, 0, 2**32 - 1) == 1


@pytest.mark.parametrize("ident", [1, 2, 3, 2**32 - 1])
def test_watchdogs_that_are_not_there(bench: Bench, ident: int) -> None:
    assert watchdog(bench, ident, 30) == -x.EINVAL
    assert bench.platform.armed == {}


def test_a_watchdog_for_no_time_is_over_at_once_as_in_xen(bench: Bench) -> None:
    assert watchdog(bench, 0, 0) == 1
    assert bench.platform.armed["watchdog", 1][0] == bench.platform.now
