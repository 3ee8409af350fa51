"""Every hypercall with right and wrong arguments; and whatever is asked, the answer is a number."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.delivery import FakeDelivery
from tests.fakes.guest_memory import PRESENT, FakeMemory, PageTables
from xenpvd.abi import event_channel as e
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import XenError
from xenpvd.vmm.xen.evtchn import EventChannels
from xenpvd.vmm.xen.gnttab import GrantTable
from xenpvd.vmm.xen.gva import VirtualMemory
from xenpvd.vmm.xen.hypercall import _TABLE, CONSOLE_WRITE_MAX, Caller, Hypercalls

DOMID, VCPUS = 1, 2
E820 = [(0, 0x1000_0000, 1), (0xFC00_0000, 0x10000, 3), (0xFEFF_8000, 0x8000, 2)]
#: the caller's stack: two pages that do not lie side by side, then one that is read-only, then nothing
ARG = 0xFFFF_82D0_8060_0000
LAST = ARG + PAGE_SIZE - 2
READ_ONLY = ARG + 2 * PAGE_SIZE
NOWHERE = ARG + 3 * PAGE_SIZE
HOLE = 0x100001  # backed, but not RAM


class FakePlatform:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.log = b""

    def set_shared_info(self, gfn: int) -> None:
        self.calls.append(("shared_info", gfn))

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None:
        self.calls.append(("vcpu_info", vcpu, gpa))

    def set_upcall_vector(self, vcpu: int, vector: int) -> None:
        self.calls.append(("vector", vcpu, vector))

    def is_ram(self, gfn: int) -> bool:
        return gfn < 64

    def is_backed(self, gfn: int) -> bool:
        return gfn < 64 or gfn == HOLE

    def discard(self, gfn: int) -> None:
        self.calls.append(("discard", gfn))

    def console_write(self, data: bytes) -> None:
        self.log += data

    def shutdown(self, reason: int) -> None:
        self.calls.append(("shutdown", reason))


class Bench:
    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.platform = FakePlatform()
        self.delivery = FakeDelivery()
        self.evtchn = EventChannels(DOMID, VCPUS, self.delivery)
        self.gnttab = GrantTable(self.memory)
        self.params = {0: 0, 1: 0xFEFFC, 2: 2, 17: 0xFEFFF, 18: 1}
        self.hypercalls = Hypercalls(
            domid=DOMID,
            vcpus=VCPUS,
            e820=E820,
            params=self.params,
            evtchn=self.evtchn,
            gnttab=self.gnttab,
            platform=self.platform,
        )
        tables = PageTables(self.memory, first=40)
        tables.map(ARG, 0x8000)
        tables.map(ARG + PAGE_SIZE, 0x3000)
        tables.map(READ_ONLY, 0x5000, flags=PRESENT)
        self.virtual = VirtualMemory(self.memory, tables.cr3)
        self.caller = Caller(0, self.virtual)

    def call(self, number: int, *args: int) -> int:
        return self.hypercalls.call(self.caller, number, [*args, 0, 0, 0, 0, 0, 0][:6])

    def ask(self, number: int, op: int, layout: str, *fields: int, at: int = ARG) -> tuple[int, ...]:
        """A call with a struct by pointer: (result, the struct's fields afterwards)."""
        raw = struct.pack(layout, *fields)
        if at == READ_ONLY:
            self.memory.write(0x5000, raw)
        else:
            self.virtual.write(at, raw)
        result = self.call(number, op, at)
        return result, *struct.unpack(layout, self.virtual.read(at, len(raw)))


@pytest.fixture
def bench() -> Bench:
    return Bench()


MEMORY, VCPU, HVM, EVTCHN, GNTTAB, SCHED, CONSOLE = 12, 24, 34, 32, 20, 29, 18
ALLOC, CLOSE, SEND, STATUS, BIND_IPI = 6, 3, 4, 5, 7


# -- the whole table


@pytest.mark.parametrize("number, op", sorted(_TABLE))
def test_a_pointer_to_nowhere_is_efault(bench: Bench, number: int, op: int) -> None:
    without = {"do_yield": 0, "do_flush_tlbs": -x.ENOSYS}
    handler = _TABLE[number, op].__name__
    for pointer in (NOWHERE, 0, 2**64 - 1, 1 << 47):
        if (number, op) == (CONSOLE, 0):
            result = bench.call(number, op, 8, pointer)
        elif handler == "do_register_vcpu_info":
            result = bench.call(number, op, 0, pointer)
        else:
            result = bench.call(number, op, pointer, 1)
        assert result == without.get(handler, -x.EFAULT)
    assert bench.platform.calls == []
    assert bench.evtchn.alloc_unbound(DOMID, 0) == 1, "no port was allocated"


@pytest.mark.parametrize(
    "number, op",
    [
        (0, 0),
        (17, 0),  # xen_version: the shim has its own
        (EVTCHN, 1),
        (EVTCHN, 2),
        (EVTCHN, 11),  # init_control: FIFO is not offered (E8)
        (GNTTAB, 0),
        (GNTTAB, 5),
        (GNTTAB, 8),
        (MEMORY, 0),
        (MEMORY, 11),
        (HVM, 2),
        (SCHED, 1),
        (SCHED, 3),
        (CONSOLE, 1),
        (13, 2),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_everything_else_is_enosys_and_counted(bench: Bench, number: int, op: int) -> None:
    assert bench.call(number, op, ARG, 1) == -x.ENOSYS
    assert bench.hypercalls.counts["unknown"] == 1


def test_counts_have_a_fixed_set_of_keys(bench: Bench) -> None:
    keys = set(bench.hypercalls.counts)
    for number in range(64):
        for op in range(32):
            bench.call(number, op, NOWHERE)
    counts = bench.hypercalls.counts
    assert set(counts) == keys and sum(counts.values()) == 64 * 32
    assert all(counts[handler.__name__] == 1 for handler in _TABLE.values())


# -- memory_op


@pytest.mark.parametrize("room, given_", [(128, 3), (3, 3), (1, 1), (0, 0), (2**32 - 1, 3)])
def test_memory_map(bench: Bench, room: int, given_: int) -> None:
    buffer = ARG + 0x100
    assert bench.ask(MEMORY, 9, "<I4xQ", room, buffer) == (0, given_, buffer)
    raw = bench.virtual.read(buffer, 20 * given_)
    assert [struct.unpack_from("<QQI", raw, 20 * n) for n in range(given_)] == E820[:given_]


def test_memory_map_into_nowhere(bench: Bench) -> None:
    assert bench.ask(MEMORY, 9, "<I4xQ", 128, NOWHERE - 4)[0] == -x.EFAULT


@pytest.mark.parametrize("gfn", [12, HOLE])
def test_shared_info_goes_where_memory_is(bench: Bench, gfn: int) -> None:
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, gfn)[0] == 0
    assert bench.platform.calls == [("shared_info", gfn)]


def test_grant_frames(bench: Bench) -> None:
    assert bench.ask(MEMORY, 7, "<HHIQQ", DOMID, 0, 1, 0, 12)[0] == 0
    assert bench.ask(MEMORY, 7, "<HHIQQ", DOMID, 0, 1, 3, 13)[0] == 0
    assert bench.gnttab.nr_frames == 2


@pytest.mark.parametrize(
    "domid, space, idx, gfn, error",
    [
        (2, 0, 0, 12, x.EPERM),
        (x.DOMID_SELF, 0, 1, 12, x.EINVAL),
        (x.DOMID_SELF, 2, 0, 12, x.EINVAL),
        (x.DOMID_SELF, 2**32 - 1, 0, 12, x.EINVAL),
        (x.DOMID_SELF, 0, 0, 64, x.EINVAL),
        (x.DOMID_SELF, 0, 0, 2**52, x.EINVAL),
        (x.DOMID_SELF, 1, 0, 2**64 - 1, x.EINVAL),
        (x.DOMID_SELF, 1, 64, 12, x.EINVAL),
        (x.DOMID_SELF, 1, 2**64 - 1, 12, x.EINVAL),
    ],
)
def test_add_to_physmap_refuses(bench: Bench, domid: int, space: int, idx: int, gfn: int, error: int) -> None:
    assert bench.ask(MEMORY, 7, "<HHIQQ", domid, 0, space, idx, gfn)[0] == -error
    assert bench.platform.calls == [] and bench.gnttab.nr_frames == 0


def reservation(bench: Bench, op: int, gfns: list[int], *, count: int | None = None, order: int = 0) -> int:
    extents = ARG + 0x100
    bench.virtual.write(extents, b"".join(gfn.to_bytes(8, "little") for gfn in gfns))
    count = len(gfns) if count is None else count
    return bench.ask(MEMORY, op, "<QQIIH6x", extents, count, order, 0, x.DOMID_SELF)[0]


def test_the_balloon_gives_back_and_takes(bench: Bench) -> None:
    assert reservation(bench, 1, [5, 7, 9]) == 3
    assert bench.platform.calls == [("discard", gfn) for gfn in (5, 7, 9)]
    assert reservation(bench, 6, [5, 7]) == 2
    assert reservation(bench, 1, [16], order=2) == 1
    assert bench.platform.calls[3:] == [("discard", gfn) for gfn in range(16, 20)]


@pytest.mark.parametrize("op", [1, 6])
@pytest.mark.parametrize(
    "gfns, done",
    [([5, 64, 6], 1), ([HOLE], 0), ([2**64 - 1], 0), ([2**63], 0), ([], 0)],
)
def test_the_answer_is_how_many_extents_were_done(bench: Bench, op: int, gfns: list[int], done: int) -> None:
    assert reservation(bench, op, gfns) == done


def test_reservations_are_bounded(bench: Bench) -> None:
    assert reservation(bench, 6, [1], order=10) == -x.EPERM
    assert reservation(bench, 6, [1], order=2**32 - 1) == -x.EPERM
    full = [1] * 400  # as many as the two mapped pages hold, and many more are claimed
    assert reservation(bench, 1, full, count=2**64 - 1) <= 1024
    assert len(bench.platform.calls) <= 1024
    bench.platform.calls.clear()
    assert reservation(bench, 1, [0] * 400, count=2**40, order=5) == 32
    assert len(bench.platform.calls) == 1024


def test_extents_that_run_into_nowhere_end_there(bench: Bench) -> None:
    bench.virtual.write(ARG + 2 * PAGE_SIZE - 16, (5).to_bytes(8, "little") * 2)
    bench.memory.write(0x5000, (99).to_bytes(8, "little") * 512)  # not RAM
    fields = (ARG + 2 * PAGE_SIZE - 16, 3, 0, 0, DOMID)
    assert bench.ask(MEMORY, 1, "<QQIIH6x", *fields)[0] == 2


def test_reservations_of_others(bench: Bench) -> None:
    assert bench.ask(MEMORY, 1, "<QQIIH6x", ARG, 1, 0, 0, 0)[0] == -x.EPERM


# -- vcpu_op, hvm_op


def register(bench: Bench, vcpu: int, gfn: int, offset: int) -> int:
    bench.virtual.write(ARG, struct.pack("<QII", gfn, offset, 0))
    return bench.call(VCPU, 10, vcpu, ARG)


def test_register_vcpu_info(bench: Bench) -> None:
    assert register(bench, 0, 12, 0x460) == 0
    assert register(bench, 1, HOLE, 4096 - 64) == 0
    assert bench.platform.calls == [
        ("vcpu_info", 0, 0xC460),
        ("vcpu_info", 1, (HOLE << 12) + 4096 - 64),
    ]
    assert register(bench, 0, 12, 0x460) == -x.EINVAL, "once a vCPU"


@pytest.mark.parametrize(
    "vcpu, gfn, offset, error",
    [
        (2, 12, 0, x.ENOENT),
        (2**32 - 1, 12, 0, x.ENOENT),
        (0, 12, 4096 - 63, x.EINVAL),
        (0, 12, 2**32 - 1, x.EINVAL),
        (0, 64, 0, x.EINVAL),
        (0, 2**64 - 1, 0, x.EINVAL),
    ],
)
def test_register_vcpu_info_refuses(bench: Bench, vcpu: int, gfn: int, offset: int, error: int) -> None:
    assert register(bench, vcpu, gfn, offset) == -error
    assert bench.platform.calls == []
    assert register(bench, 0, 12, 0) == 0, "a refused one does not count"


@pytest.mark.parametrize("index, value", [(1, 0xFEFFC), (2, 2), (17, 0xFEFFF), (18, 1), (0, 0)])
def test_get_param(bench: Bench, index: int, value: int) -> None:
    assert bench.ask(HVM, 1, "<H2xIQ", x.DOMID_SELF, index, 99)[0::3] == (0, value)


@pytest.mark.parametrize(
    "op, domid, index, error",
    [
        (1, DOMID, 3, x.EINVAL),
        (1, DOMID, 2**32 - 1, x.EINVAL),
        (1, 0, 1, x.EPERM),
        (0, DOMID, 1, x.EPERM),
        (0, DOMID, 18, x.EPERM),
        (0, DOMID, 36, x.EINVAL),
        (0, 2, 0, x.EPERM),
    ],
)
def test_params_that_are_not_to_be_had(bench: Bench, op: int, domid: int, index: int, error: int) -> None:
    before = dict(bench.params)
    assert bench.ask(HVM, op, "<H2xIQ", domid, index, 7)[0] == -error
    assert bench.params == before


def test_set_param_takes_the_callback_and_tells_kvm_nothing(bench: Bench) -> None:
    assert bench.ask(HVM, 0, "<H2xIQ", x.DOMID_SELF, 0, 1)[0] == 0
    assert bench.params[0] == 1 and bench.platform.calls == []


@pytest.mark.parametrize(
    "vcpu, vector, result", [(0, 0xF1, 0), (1, 0x10, 0), (0, 0xF, -x.EINVAL), (0, 0, -x.EINVAL)]
)
def test_upcall_vector(bench: Bench, vcpu: int, vector: int, result: int) -> None:
    assert bench.ask(HVM, 23, "<IB3x", vcpu, vector)[0] == result
    assert bench.platform.calls == ([("vector", vcpu, vector)] if not result else [])


def test_upcall_vector_of_a_vcpu_that_is_not_there(bench: Bench) -> None:
    assert bench.ask(HVM, 23, "<IB3x", 2, 0xF1)[0] == -x.ENOENT


def test_flush_tlbs_is_not_claimed(bench: Bench) -> None:
    assert bench.call(HVM, 5, 0) == -x.ENOSYS


# -- event_channel_op


def test_ports_are_told(bench: Bench) -> None:
    assert bench.ask(EVTCHN, ALLOC, "<HHI", x.DOMID_SELF, 0, 0) == (0, x.DOMID_SELF, 0, 1)
    assert bench.ask(EVTCHN, ALLOC, "<HHI", DOMID, x.DOMID_SELF, 0) == (0, DOMID, x.DOMID_SELF, 2)
    assert bench.ask(EVTCHN, 0, "<H2xII", DOMID, 2, 0) == (0, DOMID, 2, 3)
    assert bench.ask(EVTCHN, BIND_IPI, "<II", 1, 0) == (0, 1, 4)
    assert bench.ask(EVTCHN, STATUS, "<H2x5I", DOMID, 3, 9, 9, 9, 9) == (0, DOMID, 3, 2, 0, DOMID, 2)
    assert bench.ask(EVTCHN, 8, "<II", 3, 1)[0] == 0
    assert bench.ask(EVTCHN, 9, "<I", 3)[0] == 0
    assert bench.ask(EVTCHN, SEND, "<I", 4)[0] == 0
    assert bench.ask(EVTCHN, CLOSE, "<I", 4)[0] == 0
    assert bench.ask(EVTCHN, SEND, "<I", 4)[0] == -x.EINVAL
    assert bench.ask(EVTCHN, 10, "<H", DOMID)[0] == 0
    assert bench.ask(EVTCHN, SEND, "<I", 1)[0] == -x.EINVAL


def test_arguments_may_cross_pages_that_lie_apart(bench: Bench) -> None:
    assert bench.ask(EVTCHN, ALLOC, "<HHI", x.DOMID_SELF, 0, 0, at=LAST) == (0, x.DOMID_SELF, 0, 1)


@pytest.mark.parametrize(
    "op, layout, fields",
    [(ALLOC, "<HHI", (DOMID, DOMID, 0)), (0, "<H2xII", (DOMID, 1, 0)), (BIND_IPI, "<II", (0, 0))],
)
def test_a_port_that_cannot_be_told_is_not_kept(
    bench: Bench, op: int, layout: str, fields: tuple[int, ...]
) -> None:
    """Whether the struct lies in a read-only page or only its end does (E12)."""
    first = bench.evtchn.alloc_unbound(DOMID, DOMID)
    assert bench.ask(EVTCHN, op, layout, *fields, at=READ_ONLY)[0] == -x.EFAULT
    crossing = struct.pack(layout, *fields)
    bench.virtual.write(READ_ONLY - 2, crossing[:2])
    bench.memory.write(0x5000, crossing[2:])
    assert bench.call(EVTCHN, op, READ_ONLY - 2) == -x.EFAULT
    assert bench.evtchn.status(DOMID, first)[0] == e.EVTCHNSTAT_unbound
    assert bench.delivery.connected == {}
    assert bench.evtchn.alloc_unbound(DOMID, 0) == first + 1


# -- the rest


def test_query_size(bench: Bench) -> None:
    bench.gnttab.set_frame(0, 12)
    bench.virtual.write(ARG, struct.pack("<H2xIIh2x", x.DOMID_SELF, 9, 9, 9))
    assert bench.call(GNTTAB, 6, ARG, 1) == 0
    assert struct.unpack("<H2xIIh2x", bench.virtual.read(ARG, 16)) == (x.DOMID_SELF, 1, 64, 0)
    bench.virtual.write(ARG, struct.pack("<H2xIIh2x", 5, 9, 9, 9))
    assert bench.call(GNTTAB, 6, ARG, 1) == 0
    assert struct.unpack("<H2xIIh2x", bench.virtual.read(ARG, 16))[3] == -2
    for count in (0, 2, 2**31, 2**64 - 1):
        assert bench.call(GNTTAB, 6, ARG, count) == -x.EINVAL


@pytest.mark.parametrize("reason", [*range(8), 255, 2**32 - 1])
def test_shutdown(bench: Bench, reason: int) -> None:
    result = bench.ask(SCHED, 2, "<I", reason)[0]
    if reason in (0, 1, 3, 4):
        assert (result, bench.platform.calls) == (0, [("shutdown", reason)])
    else:  # suspend among them: the guest cancels it and goes on
        assert (result, bench.platform.calls) == (-x.EINVAL, [])


def test_yield(bench: Bench) -> None:
    assert bench.call(SCHED, 0) == 0


def test_console_write(bench: Bench) -> None:
    bench.virtual.write(ARG, b"(XEN) hello\n")
    assert bench.call(CONSOLE, 0, 12, ARG) == 0
    assert bench.call(CONSOLE, 0, 0, NOWHERE) == 0
    assert bench.platform.log == b"(XEN) hello\n"


@pytest.mark.parametrize("count", [CONSOLE_WRITE_MAX + 1, 2**31, 2**32 - 1, 2**64 - 1])
def test_console_write_of_absurd_length(bench: Bench, count: int) -> None:
    assert bench.call(CONSOLE, 0, count, ARG) == -x.EINVAL
    assert bench.platform.log == b""


# -- fuzz (E10)

words = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 130),
    st.sampled_from(
        [ARG, LAST, ARG + PAGE_SIZE, READ_ONLY, READ_ONLY - 4, NOWHERE, NOWHERE - 4, HOLE, 2**32]
    ),
)
calls = st.tuples(
    st.sampled_from(sorted(_TABLE)) | st.tuples(words, words), st.lists(words, min_size=5, max_size=5)
)


@settings(max_examples=300)
@given(
    content=st.binary(max_size=64)
    | st.lists(words, max_size=8).map(lambda w: struct.pack(f"<{len(w)}Q", *w)),
    asked=st.lists(calls, max_size=12),
)
def test_any_call_with_any_memory_has_a_number_for_an_answer(
    content: bytes, asked: list[tuple[tuple[int, int], list[int]]]
) -> None:
    bench = Bench()
    for gpa in (0x8000, 0x3FFE, 0x3000, 0x5000, 0x9000 - 2):
        bench.memory.write(gpa, content)
    size = len(bench.memory.bytes)
    for (number, op), rest in asked:
        result = bench.hypercalls.call(bench.caller, number, (op, *rest))
        assert isinstance(result, int) and -133 < result <= 1024
    assert len(bench.memory.bytes) == size


def test_a_refusal_of_the_platform_is_the_guests_error(bench: Bench) -> None:
    def refuse(gfn: int) -> None:
        raise XenError(x.EEXIST)

    bench.platform.set_shared_info = refuse  # type: ignore[method-assign]
    assert bench.ask(MEMORY, 7, "<HHIQQ", DOMID, 0, 0, 0, 12)[0] == -x.EEXIST
