"""The door: whatever is asked, the answer is a number, and it is counted. Each family has its own tests."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vmm.xen.bench import CLAIMABLE, Bench
from xenpvd.abi import event_channel as e
from xenpvd.abi import memory as m
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import KvmError, XenError
from xenpvd.vmm.xen.hypercall import MULTICALL_MAX, OPERATIONS, RECENT, HypercallCount

SCHED, EVTCHN, HVM, MEMORY = (
    x.HYPERVISOR_sched_op,
    x.HYPERVISOR_event_channel_op,
    x.HYPERVISOR_hvm_op,
    x.HYPERVISOR_memory_op,
)
#: what an operation with no pointer, or none in its second argument, says of one that leads nowhere
WITHOUT = {
    "do_yield": 0,
    "do_block": 0,
    "do_flush_tlbs": -x.ENOSYS,
    "do_maximum_ram_page": 0xFEFFF,
    "do_version": 4 << 16 | 17,
    "do_pagesize": -x.EINVAL,
    "do_build_id": -x.ENODATA,
    "do_up": 0,
    "do_is_up": 1,
    "do_get_physid": -x.EINVAL,
    "do_stop_periodic_timer": 0,
    "do_stop_singleshot_timer": 0,
}


@pytest.mark.parametrize("number, op", sorted(OPERATIONS))
def test_a_pointer_to_nowhere_is_efault(bench: Bench, number: int, op: int) -> None:
    """E12."""
    handler = OPERATIONS[number, op].__name__
    for pointer in (bench.nowhere, 0, 2**32 - 1, 2**64 - 1, 1 << 47):
        if number == x.HYPERVISOR_console_io:
            result = bench.call(number, op, 8, pointer)
        elif number == x.HYPERVISOR_vcpu_op:
            result = bench.call(number, op, 0, pointer)
        elif handler == "do_pagesize":
            result = bench.call(number, op, pointer or 1)
        else:
            result = bench.call(number, op, pointer, 1)
        assert result == WITHOUT.get(handler, -x.EFAULT)
    assert {call[0] for call in bench.platform.calls} <= {"timer"}
    assert bench.platform.armed == {} and bench.platform.claimed == set()
    assert bench.evtchn.alloc_unbound(x.DOMID_SELF, 0) == 1, "no port was allocated"


@pytest.mark.parametrize(
    "number, op",
    [
        (0, 0),
        (1, 0),
        (21, 4),  # vm_assist
        (26, 0),  # mmuext_op
        (33, 4),  # physdev_op
        (x.HYPERVISOR_grant_table_op, 255),
        (x.HYPERVISOR_memory_op, 11),  # exchange
        (x.HYPERVISOR_memory_op, 1 << 6 | 1),  # a continuation, which nobody has begun
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_everything_else_is_enosys_and_counted(bench: Bench, number: int, op: int) -> None:
    assert bench.call(number, op, bench.arg, 1) == -x.ENOSYS
    assert bench.hypercalls.counts["unknown"] == 1
    assert bench.hypercalls.stats(9)[1] == (HypercallCount("unknown", 1, {"ENOSYS": 1}),)


def test_a_refusal_of_the_platform_is_the_guests_error(bench: Bench) -> None:
    def refuse(gfn: int) -> None:
        raise faults.pop()

    bench.platform.set_shared_info = refuse  # type: ignore[method-assign]
    faults = [KvmError("KVM says no", "KVM_XEN_HVM_SET_ATTR", 5), XenError(x.ENOMEM)]
    fields = x.DOMID_SELF, 0, m.XENMAPSPACE_shared_info, 0, 12
    answers = [bench.ask(MEMORY, m.XENMEM_add_to_physmap, m.xen_add_to_physmap, *fields)[0] for _ in range(2)]
    assert answers == [-x.ENOMEM, -x.EINVAL]


# -- multicall


def multicall(
    bench: Bench, *calls: tuple[int, ...], count: int | None = None, at: int = 0
) -> tuple[int, list[int]]:
    """(result, each call's result, without sign)."""
    at = at or bench.arg + 0x400
    size = bench.caller.layout(x.multicall_entry).size
    for n, (number, *args) in enumerate(calls):
        bench.put(x.multicall_entry, number, 99, *(*args, 0, 0, 0, 0, 0, 0)[:6], at=at + n * size)
    result = bench.call(x.HYPERVISOR_multicall, at, len(calls) if count is None else count)
    return result, [bench.get(x.multicall_entry, at + n * size)[1] for n in range(len(calls))]


def test_calls_in_one(bench: Bench) -> None:
    port = bench.put(e.evtchn_port, 77)
    top = 1 << (64 if bench.caller.longmode else 32)
    asked = multicall(
        bench,
        (SCHED, 0),
        (EVTCHN, e.EVTCHNOP_unmask, port),
        (EVTCHN, e.EVTCHNOP_send, port),
        (x.HYPERVISOR_xen_version, 0),
        (99, 0),
        (x.HYPERVISOR_multicall, bench.arg, 1),  # not inside of one
        (HVM, 1, bench.nowhere),
    )
    version = 4 << 16 | 17
    assert asked == (0, [0, 0, top - x.EINVAL, version, top - x.ENOSYS, top - x.EINVAL, top - x.EFAULT])
    assert bench.hypercalls.counts["do_evtchn_unmask"] == 1
    assert bench.platform.breaks == 6, "others are let in between them"
    assert multicall(bench, (SCHED, 0)) == (0, [0]), "after one comes another"
    assert multicall(bench) == (0, [])


@pytest.mark.parametrize("count", [MULTICALL_MAX + 1, 2**20, 2**32 - 1])
def test_a_multicall_of_too_many_does_nothing(bench: Bench, count: int) -> None:
    """E16."""
    assert multicall(bench, (SCHED, 0), count=count) == (-x.EINVAL, [99])
    assert bench.hypercalls.counts["do_yield"] == 0


def test_a_multicall_that_runs_into_nowhere(bench: Bench) -> None:
    entry = bench.caller.layout(x.multicall_entry).pack(SCHED, 0, 0, 0, 0, 0, 0, 0)
    bench.virtual.write(bench.read_only - len(entry), entry)
    bench.memory.write(0x5000, entry)  # its result cannot be written
    assert bench.call(x.HYPERVISOR_multicall, bench.read_only - len(entry), 3) == -x.EFAULT
    assert bench.hypercalls.counts["do_yield"] == 2
    assert multicall(bench, (SCHED, 0)) == (0, [0]), "the next one is not inside of this one"


# -- counts


def test_counts_have_a_fixed_set_of_keys(bench: Bench) -> None:
    keys = set(bench.hypercalls.counts)
    for number in range(64):
        if number != x.HYPERVISOR_multicall:
            for op in range(32):
                bench.call(number, op, bench.nowhere)
    counts = bench.hypercalls.counts
    assert set(counts) == keys and sum(counts.values()) == 63 * 32
    assert counts["do_set_timer"] == 32
    assert all(counts[handler.__name__] == 1 for handler in OPERATIONS.values())


def test_stats(bench: Bench) -> None:
    for _ in range(3):
        bench.call(SCHED, 0)
    port = bench.put(e.evtchn_port, 77)
    bench.call(EVTCHN, e.EVTCHNOP_send, port)
    bench.call(33, 4)
    bench.evtchn.bind_ipi(0)
    bench.put(e.evtchn_port, 1)
    bench.call(EVTCHN, e.EVTCHNOP_send, port)
    bench.call(x.HYPERVISOR_vcpu_op, 3, 1, 0)
    total, counts, recent = bench.hypercalls.stats(4)
    assert total == 7
    assert counts == (
        HypercallCount("yield", 3, {"ok": 3}),
        HypercallCount("evtchn_send", 2, {"EINVAL": 1, "ok": 1}),
        HypercallCount("is_up", 1, {"ok": 1}),
        HypercallCount("unknown", 1, {"ENOSYS": 1}),
    )
    assert [(one.seq, one.vcpu, one.name, one.args, one.result) for one in recent] == [
        (4, 0, "evtchn_send", (4, port), -x.EINVAL),
        (5, 0, "unknown 33", (4, 0), -x.ENOSYS),
        (6, 0, "evtchn_send", (4, port), 0),
        (7, 0, "is_up", (3, 1, 0), 1),
    ]
    assert bench.hypercalls.stats(0)[2] == ()


def test_the_newest_calls_are_kept(bench: Bench) -> None:
    for _ in range(2 * RECENT):
        bench.call(SCHED, 0)
    recent = bench.hypercalls.stats(10**6)[2]
    assert [one.seq for one in recent] == list(range(RECENT + 1, 2 * RECENT + 1))


# -- fuzz (E10)

LONG, COMPAT = Bench(), Bench(longmode=False)


def places(bench: Bench) -> list[int]:
    """Addresses and numbers near which things change."""
    edges = [bench.arg, bench.last, bench.arg + PAGE_SIZE, bench.read_only, bench.read_only - 4]
    return [*edges, bench.nowhere, bench.nowhere - 4, CLAIMABLE, 2**31, 2**32 - 1, 2**32]


words = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 130), st.sampled_from([*places(LONG), *places(COMPAT)])
)
calls = st.tuples(
    st.sampled_from([*sorted(OPERATIONS), (x.HYPERVISOR_multicall, LONG.arg), (x.HYPERVISOR_set_timer_op, 5)])
    | st.tuples(words, words),
    st.lists(words, min_size=5, max_size=5),
)


def survives(bench: Bench, content: bytes, asked: list[tuple[tuple[int, int], list[int]]]) -> None:
    size = len(bench.memory.bytes)
    ones = (1 << 8 * bench.caller.ulong) - 1
    for gpa in (0x8000, 0x3FFE, 0x3000, 0x5000, 0x9000 - 2):
        bench.memory.write(gpa, content[:512])
    for (number, op), rest in asked:
        args = tuple(word & ones for word in (op, *rest))
        result = bench.hypercalls.call(bench.caller, number & ones, args)
        assert isinstance(result, int) and -133 < result < 2**31
    assert len(bench.memory.bytes) == size


@settings(max_examples=300, deadline=None)
@given(
    longmode=st.booleans(),
    content=st.binary(max_size=64)
    | st.lists(words, max_size=8).map(lambda w: struct.pack(f"<{len(w)}Q", *w)),
    asked=st.lists(calls, max_size=12),
)
def test_any_call_with_any_memory_has_a_number_for_an_answer(
    longmode: bool, content: bytes, asked: list[tuple[tuple[int, int], list[int]]]
) -> None:
    survives(Bench(longmode), content, asked)


def test_twenty_thousand_random_calls(bench: Bench) -> None:
    """E10, in small (there 10^6 of them): hypercalls 0..1023 with random arguments and random memory, to one
    outer Xen that lives through them all."""
    dice = random.Random(1)
    some = [*places(bench), *range(16)]
    for _ in range(1000):
        content = struct.pack("<16I", *(dice.choice(some) & 0xFFFF_FFFF for _ in range(16)))
        asked = [
            (
                dice.choice(sorted(OPERATIONS))
                if dice.random() < 0.7
                else (dice.randrange(1024), dice.choice(some)),
                [dice.choice(some) for _ in range(5)],
            )
            for _ in range(10)
        ]
        survives(bench, content, asked)
    assert sum(bench.hypercalls.counts.values()) >= 10_000
