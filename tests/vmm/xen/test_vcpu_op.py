"""vcpu_op and set_timer_op, for callers of both widths."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import CLAIMABLE, Bench
from xenpvd.abi import vcpu as v
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE

VCPU, SET_TIMER = x.HYPERVISOR_vcpu_op, x.HYPERVISOR_set_timer_op
MS = 1_000_000


def ask(bench: Bench, op: int, vcpu: int = 0, pointer: int = 0) -> int:
    return bench.call(VCPU, op, vcpu, pointer)


@pytest.mark.parametrize("vcpu", [2, 32, 2**31, 2**32 - 1])
@pytest.mark.parametrize(
    "op", [op for op in range(14) if op not in (v.VCPUOP_initialise, v.VCPUOP_down, v.VCPUOP_send_nmi)]
)
def test_there_is_no_such_vcpu(bench: Bench, op: int, vcpu: int) -> None:
    """E5."""
    assert ask(bench, op, vcpu, bench.arg) == -x.ENOENT
    assert bench.platform.calls == [] and bench.platform.armed == {}


@pytest.mark.parametrize("op", [v.VCPUOP_initialise, v.VCPUOP_down, v.VCPUOP_send_nmi])
def test_what_is_not_offered(bench: Bench, op: int) -> None:
    assert ask(bench, op, 0, bench.arg) == -x.ENOSYS


# -- vcpu_info


def register(bench: Bench, vcpu: int, gfn: int, offset: int) -> int:
    return ask(bench, v.VCPUOP_register_vcpu_info, vcpu, bench.put(v.vcpu_register_vcpu_info, gfn, offset, 0))


def test_register_vcpu_info(bench: Bench) -> None:
    bench.platform.claim(CLAIMABLE)
    assert register(bench, 0, 12, 0x460) == 0
    assert register(bench, 1, CLAIMABLE, 4096 - 64) == 0
    assert bench.platform.calls == [("vcpu_info", 0, 0xC460), ("vcpu_info", 1, (CLAIMABLE << 12) + 4096 - 64)]
    assert register(bench, 0, 12, 0x460) == -x.EINVAL, "once a vCPU"


@pytest.mark.parametrize(
    "vcpu, gfn, offset, error",
    [
        (0, 12, 4096 - 56, x.ENXIO),
        (0, 12, 2**32 - 8, x.ENXIO),
        (0, 12, 4096, x.ENXIO),
        (0, 12, 2, x.ENXIO),
        (0, 12, 0x45E, x.ENXIO),
        (0, 12, 0x461, x.ENXIO),
        (0, 64, 0, x.EINVAL),
        (0, CLAIMABLE, 0, x.EINVAL),  # nobody has claimed it
        (0, 2**64 - 1, 0, x.EINVAL),
    ],
)
def test_register_vcpu_info_refuses(bench: Bench, vcpu: int, gfn: int, offset: int, error: int) -> None:
    """E9: at the end of RAM, unaligned, twice."""
    assert register(bench, vcpu, gfn, offset) == -error
    assert bench.platform.calls == []
    assert register(bench, 0, 12, 0) == 0, "a refused one does not count"


def test_vcpu_info_is_aligned_as_its_words_are(bench: Bench) -> None:
    assert register(bench, 0, 12, 0x464) == (-x.ENXIO if bench.caller.longmode else 0)
    assert register(bench, 1, 12, 0x468) == 0


# -- areas that are kept up to date

AREAS = [
    (v.VCPUOP_register_runstate_memory_area, "runstate_area"),
    (v.VCPUOP_register_vcpu_time_memory_area, "time_info"),
]


@pytest.mark.parametrize("op, name", AREAS)
def test_an_area_is_told_by_its_physical_address(bench: Bench, op: int, name: str) -> None:
    for vcpu in (0, 1):
        pointer = bench.put(v.vcpu_register_memory_area, bench.arg + PAGE_SIZE + 0x80)
        assert ask(bench, op, vcpu, pointer) == 0
    assert bench.platform.calls == [(name, 0, 0x3080), (name, 1, 0x3080)]
    assert ask(bench, op, 1, bench.put(v.vcpu_register_memory_area, 0)) == 0
    assert bench.platform.calls[2:] == [(name, 1, None)]


@pytest.mark.parametrize("op, name", AREAS)
def test_an_area_that_cannot_be(bench: Bench, op: int, name: str) -> None:
    """E9, E12: unmapped, read-only, in two pieces, no memory; and for a 32-bit caller, beyond 4 GiB."""
    bench.tables.map(bench.nowhere + PAGE_SIZE, CLAIMABLE << 12)
    places = bench.nowhere, bench.read_only, bench.read_only - 8, bench.last, bench.nowhere + PAGE_SIZE
    for place in (*places, (1 << 32) + bench.arg, 2**64 - 1):
        assert ask(bench, op, 0, bench.put(v.vcpu_register_memory_area, place % 2**64)) == -x.EFAULT
    assert bench.platform.calls == []


def test_runstates(bench: Bench) -> None:
    assert ask(bench, v.VCPUOP_get_runstate_info, 0, bench.arg) == 0
    assert bench.get(v.vcpu_runstate_info) == (v.RUNSTATE_running, 5, 10, 20, 30, 40)
    place = bench.arg + 0x200
    pointer = bench.put(v.vcpu_register_memory_area, place)
    assert ask(bench, v.VCPUOP_register_runstate_memory_area, 1, pointer) == 0
    assert bench.get(v.vcpu_runstate_info, place) == (v.RUNSTATE_blocked, 6, 11, 21, 31, 41)
    for nowhere in (bench.nowhere, bench.read_only - 8):
        assert ask(bench, v.VCPUOP_get_runstate_info, 1, nowhere) == -x.EFAULT


# -- up and down


def test_vcpus_that_run_are_up(bench: Bench) -> None:
    assert [ask(bench, v.VCPUOP_is_up, n) for n in (0, 1)] == [1, 1]
    assert ask(bench, v.VCPUOP_up, 1) == 0
    bench.platform.runstates[1] = (v.RUNSTATE_offline, 0, (0, 0, 0, 0))
    assert [ask(bench, v.VCPUOP_is_up, n) for n in (0, 1)] == [1, 0]
    assert ask(bench, v.VCPUOP_up, 1) == -x.EINVAL, "it has not been initialised so"
    assert ask(bench, v.VCPUOP_get_physid, 0, bench.arg) == -x.EINVAL


# -- timers


def test_a_periodic_timer_goes_on_until_it_is_stopped(bench: Bench) -> None:
    bench.evtchn.bind_virq(x.VIRQ_TIMER, 1)
    pointer = bench.put(v.vcpu_set_periodic_timer, 10 * MS)
    assert ask(bench, v.VCPUOP_set_periodic_timer, 1, pointer) == 0
    start, key = bench.platform.now, ("periodic", 1)
    bench.delivery.calls.clear()
    for n in range(1, 4):
        bench.platform.expire(key)
        assert bench.platform.now == start + n * 10 * MS
        assert bench.delivery.calls == [("raise", 1, 1)] * n
    assert ask(bench, v.VCPUOP_stop_periodic_timer, 0) == 0, "another's"
    assert key in bench.platform.armed
    assert ask(bench, v.VCPUOP_stop_periodic_timer, 1) == 0
    assert ask(bench, v.VCPUOP_stop_periodic_timer, 1) == 0
    assert bench.platform.armed == {}


@pytest.mark.parametrize("period", [0, 1, MS - 1, 1 << 62, 2**64 - 1])
def test_a_period_that_cannot_be(bench: Bench, period: int) -> None:
    """E17: no timer that fires all the time."""
    pointer = bench.put(v.vcpu_set_periodic_timer, period)
    assert ask(bench, v.VCPUOP_set_periodic_timer, 0, pointer) == -x.EINVAL
    assert bench.platform.armed == {}


@pytest.mark.parametrize(
    "deadline, flags, result",
    [
        (2_000_000_000, 0, 2_000_000_000),
        (2_000_000_000, 1, 2_000_000_000),
        (1_000_000_000, 1, 1_000_000_000),
        (999_999_999, 1, -x.ETIME),
        (999_999_999, 0, 999_999_999),  # at once
        (0, 0, 0),
        (2**63, 0, 2**63 - 1),
        (2**64 - 1, 1, 2**63 - 1),
    ],
)
def test_a_one_shot_timer(bench: Bench, deadline: int, flags: int, result: int) -> None:
    """E17."""
    pointer = bench.put(v.vcpu_set_singleshot_timer, deadline, flags)
    answer = ask(bench, v.VCPUOP_set_singleshot_timer, 0, pointer)
    if result == -x.ETIME:
        assert (answer, bench.platform.calls) == (-x.ETIME, [])
    else:
        assert (answer, bench.platform.calls) == (0, [("timer", 0, result)])


def test_a_one_shot_timer_is_the_vcpus_own(bench: Bench) -> None:
    pointer = bench.put(v.vcpu_set_singleshot_timer, 2**40, 0)
    assert ask(bench, v.VCPUOP_set_singleshot_timer, 1, pointer) == -x.EINVAL
    assert ask(bench, v.VCPUOP_stop_singleshot_timer, 1) == -x.EINVAL
    assert bench.platform.calls == []
    assert ask(bench, v.VCPUOP_stop_singleshot_timer, 0) == 0
    assert bench.platform.calls == [("timer", 0, None)]


NOW = 1_000_000_000


@pytest.mark.parametrize(
    "deadline, armed",
    [
        (0, None),
        (NOW + 5, NOW + 5),
        (3, 3),  # over: at once
        (NOW + (1 << 50) - 1, NOW + (1 << 50) - 1),
        (NOW + (1 << 50), NOW + 100 * MS),
        (2**63 - 1, NOW + 100 * MS),
        (2**63, NOW + 100 * MS),  # negative
        (2**64 - 1, NOW + 100 * MS),
    ],
)
def test_set_timer_op(bench: Bench, deadline: int, armed: int | None) -> None:
    """E17: one register, or two of a 32-bit caller."""
    halves = deadline & 0xFFFF_FFFF, deadline >> 32
    assert bench.call(SET_TIMER, *([deadline] if bench.caller.longmode else halves)) == 0
    assert bench.platform.calls == [("timer", 0, armed)]
