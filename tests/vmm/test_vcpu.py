"""The thread of a vCPU, with a KVM that a test drives: exits, kicks, the end, and faults of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.kvm import DATA, FakeVcpu, refuse
from xenpvd.abi import linux_kvm as k
from xenpvd.errors import HostError, TimedOut
from xenpvd.vmm.hypercall_insn import PORT
from xenpvd.vmm.vcpu import VcpuThread

WAIT = 10
#: what FakeVcpu has in its control registers
CONTROL = dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "efer", "cs", "ss", "fs_base", "gs_base"), 0)


class Handler:
    """Notes what it is asked; ``answer`` is the hypercalls' result, or an exception to raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.answer: int | Exception = 0
        self.over = threading.Event()

    def on_hypercall(
        self, vcpu: VcpuThread, longmode: bool, cpl: int, number: int, args: tuple[int, ...]
    ) -> int:
        self.calls.append(("hypercall", vcpu.id, longmode, cpl, number, args))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def on_msr_write(self, vcpu: VcpuThread, index: int, value: int) -> bool:
        self.calls.append(("msr", index, value))
        return index == 0x4000_0000

    def on_debug_port(self, data: bytes) -> None:
        self.calls.append(("debug", data))

    def on_power_off(self) -> None:
        self.calls.append(("off",))

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        self.calls.append(("crash", vcpu.vcpu.get_regs(), why))
        self.over.set()

    def on_fault(self, fault: BaseException) -> None:
        self.calls.append(("fault", str(fault)))
        self.over.set()


class Bench:
    def __init__(self) -> None:
        self.handler = Handler()
        self.vcpu = FakeVcpu()
        self.thread = VcpuThread(7, self.vcpu, self.handler, PORT)  # type: ignore[arg-type]

    def start(self) -> None:
        self.thread.start()
        assert self.vcpu.entered.wait(WAIT)

    def end(self) -> None:
        self.thread.stop()
        self.thread.join()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.end()


# -- exits


@pytest.mark.parametrize("answer", [0, 1024, -38, 2**63 - 1])
def test_a_hypercall_is_answered(bench: Bench, answer: int) -> None:
    bench.handler.answer = answer
    bench.start()
    bench.vcpu.guest_hypercall(32, 4, 0xFFFF_8300_0000_1234, 3, 4, 5, 2**64 - 1, longmode=1, cpl=3)
    assert bench.vcpu.guest_result() == answer
    args = (4, 0xFFFF_8300_0000_1234, 3, 4, 5, 2**64 - 1)
    assert bench.handler.calls == [("hypercall", 7, True, 3, 32, args)]


@pytest.mark.parametrize("answer", [0, -38, 2**63 - 1])
def test_a_hypercall_by_out_is_answered(bench: Bench, answer: int) -> None:
    bench.handler.answer = answer
    bench.start()
    bench.vcpu.guest_out(32, 4, 0xFFFF_8300_0000_1234, 3, 4, 5, 2**64 - 1, cpl=3)
    assert bench.vcpu.guest_rax() == answer and bench.vcpu.regs["rip"] == 0x1234
    args = (4, 0xFFFF_8300_0000_1234, 3, 4, 5, 2**64 - 1)
    assert bench.handler.calls == [("hypercall", 7, True, 3, 32, args)]
    assert bench.thread.exits["hypercall"] == 1 and bench.thread.exits["io"] == 0


def test_a_hypercall_by_out_of_32_bit_code(bench: Bench) -> None:
    bench.start()
    bench.vcpu.guest_out(12, 7, 0x2000, longmode=False)
    assert bench.vcpu.guest_rax() == 0
    assert bench.handler.calls == [("hypercall", 7, False, 0, 12, (7, 0x2000, 0, 0, 0, 0))]


@pytest.mark.parametrize("size, out", [(1, False), (2, True), (4, True)])
def test_other_uses_of_its_port_are_no_hypercalls(bench: Bench, size: int, out: bool) -> None:
    bench.start()
    bench.vcpu.guest_io(PORT, bytes(size), size=size, out=out)
    bench.vcpu.guest_sees()
    assert bench.handler.calls == [] and bench.thread.exits["io"] == 1


@pytest.mark.parametrize("index, taken", [(0x4000_0000, True), (0x10, False)])
def test_msrs_that_are_not_for_the_kernel(bench: Bench, index: int, taken: bool) -> None:
    bench.start()
    assert bench.vcpu.guest_msr(index, 0x5000) is taken
    assert bench.handler.calls == [("msr", index, 0x5000)]
    assert not bench.vcpu.guest_msr(index, None), "nothing can be read"
    assert len(bench.handler.calls) == 1 and bench.thread.exits["msr"] == 2


@pytest.mark.parametrize("size, count", [(1, 1), (2, 1), (4, 1), (1, 100), (4, 16)])
def test_a_port_that_is_not_there_reads_as_ones(bench: Bench, size: int, count: int) -> None:
    bench.start()
    bench.vcpu.guest_io(0xCFC, bytes(size * count), size=size, out=False)
    page = bench.vcpu.guest_sees()
    assert page[DATA : DATA + size * count + 1] == b"\xff" * size * count + b"\0"


@pytest.mark.parametrize("port, value", [(0x40, 0), (0x42, 0), (0x43, 0xFF), (0x3F, 0xFF)])
def test_a_timer_chip_stands_at_zero(bench: Bench, port: int, value: int) -> None:
    """Linux as a PVH guest calibrates by it, and waits long for one of all ones to move."""
    bench.start()
    bench.vcpu.guest_io(port, b"\x11", out=False)
    assert bench.vcpu.guest_sees()[DATA] == value


def test_writes_to_ports_go_nowhere_but_to_the_log(bench: Bench) -> None:
    bench.start()
    for port in (0x20, 0x43, 0xCF8, 0xE8, 0xEA):
        bench.vcpu.guest_io(port, b"x")
    bench.vcpu.guest_io(0xE9, b"(XEN) early\n")
    bench.vcpu.guest_sees()
    assert bench.handler.calls == [("debug", b"(XEN) early\n")]


@pytest.mark.parametrize("value, off", [(5 << 2 | 1 << 5, True), (5 << 2, False), (0, False)])
def test_acpis_way_to_switch_off(bench: Bench, value: int, off: bool) -> None:
    bench.start()
    bench.vcpu.guest_io(0x600, bytes([value]))
    bench.vcpu.guest_io(0x601, bytes([value]))
    bench.vcpu.guest_sees()
    assert bench.handler.calls == [("off",)] * off


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_mmio_reads_as_ones_and_writes_go_nowhere(bench: Bench, length: int) -> None:
    bench.start()
    bench.vcpu.guest_mmio(length, write=False)
    data = bench.vcpu.guest_sees()[k.KVM_RUN_mmio_data :][:8]
    assert data == b"\xff" * length + b"\x11" * (8 - length)
    bench.vcpu.guest_mmio(length, write=True)
    assert bench.vcpu.guest_sees()[k.KVM_RUN_mmio_data :][:8] == b"\x11" * 8
    assert bench.handler.calls == []


def test_exits_are_counted(bench: Bench) -> None:
    bench.start()
    for _ in range(3):
        bench.vcpu.guest_io(0x20)
    bench.vcpu.guest_mmio(4, write=True)
    bench.vcpu.guest_hypercall(29)
    bench.vcpu.guest_sees()
    assert bench.thread.exits == {"hypercall": 1, "io": 3, "mmio": 1, "msr": 0, "kick": 0, "other": 1}
    act, event, _ = done(bench)
    bench.thread.submit(0, act)
    assert event.wait(WAIT) and bench.thread.exits["kick"] == 1


def test_a_flood_of_exits_leaves_nothing_but_a_count(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """E20: ports and addresses where nothing is, at full rate."""
    bench.start()
    for _ in range(1000):
        bench.vcpu.guest_io(0x1234, out=False)
        bench.vcpu.guest_mmio(8, write=False)
    bench.vcpu.guest_sees()
    assert caplog.records == [] and bench.thread.exits["io"] == bench.thread.exits["mmio"] == 1000


@pytest.mark.parametrize(
    "reason, why",
    [
        (k.KVM_EXIT_SHUTDOWN, "shutdown (triple fault)"),
        (k.KVM_EXIT_HLT, "HLT"),
        (k.KVM_EXIT_INTERNAL_ERROR, "internal error 0x1"),
        (k.KVM_EXIT_FAIL_ENTRY, "failed entry 0x1"),
        (k.KVM_EXIT_SYSTEM_EVENT, "system event"),
        (0, "unknown"),
        (777, "777"),
    ],
)
def test_exits_that_end_the_guest(bench: Bench, reason: int, why: str) -> None:
    """E19."""

    def act(vcpu: FakeVcpu) -> int:
        vcpu.run_page[32] = 1
        return reason

    bench.start()
    bench.vcpu.guest_exits(act)
    bench.thread.join()
    assert bench.handler.calls == [("crash", {"rip": 0x1234}, f"vCPU 7: KVM exit {why}")]


# -- faults


def test_kvm_that_refuses_to_run_crashes_the_guest_in_words(bench: Bench) -> None:
    def act(vcpu: FakeVcpu) -> int:
        raise refuse("KVM_RUN", 14)

    bench.start()
    bench.vcpu.guest_exits(act)
    bench.thread.join()
    assert bench.handler.calls == [("crash", {"rip": 0x1234}, "vCPU 7: KVM_RUN failed: Bad address.")]


@pytest.mark.parametrize("where", ["hypercall", "submitted", "crash"])
def test_a_mistake_of_ours_is_told_and_ends_the_thread(bench: Bench, where: str) -> None:
    mistake = ZeroDivisionError("ours")

    def wrong(*args: object) -> None:
        raise mistake

    bench.start()
    if where == "hypercall":
        bench.handler.answer = mistake
        bench.vcpu.guest_hypercall(1)
    elif where == "submitted":
        bench.thread.submit(0, wrong)
    else:
        bench.handler.on_crash = wrong  # type: ignore[method-assign,assignment]
        bench.vcpu.guest_exits(lambda vcpu: k.KVM_EXIT_SHUTDOWN)
    bench.thread.join()
    assert bench.handler.calls[-1] == ("fault", "ours")


def test_what_kvm_refuses_later_is_only_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A guest asked for it; the vCPU whose attribute it was goes on."""

    def act() -> None:
        raise refuse("KVM_XEN_VCPU_SET_ATTR", 22)

    bench.start()
    bench.thread.submit(0, act)
    bench.vcpu.guest_hypercall(1)
    assert bench.vcpu.guest_result() == 0
    assert [record.message for record in caplog.records] == [
        "vCPU 7: KVM_XEN_VCPU_SET_ATTR failed: Invalid argument."
    ]


# -- submit


def done(bench: Bench, key: int = 0) -> tuple[Callable[[], None], threading.Event, list[int]]:
    event, threads = threading.Event(), list[int]()

    def act() -> None:
        threads.append(threading.get_ident())
        event.set()

    return act, event, threads


def test_what_is_submitted_runs_on_the_vcpus_thread_though_the_guest_never_exits(bench: Bench) -> None:
    bench.start()
    for _ in range(50):
        act, event, threads = done(bench)
        bench.thread.submit(0, act)
        assert event.wait(WAIT)
        assert threads == [bench.thread._thread.ident]


def test_what_is_submitted_before_the_start_runs_before_the_guest(bench: Bench) -> None:
    act, event, _ = done(bench)
    bench.thread.submit(0, act)
    bench.vcpu.guest_exits(lambda vcpu: k.KVM_EXIT_INTR if event.is_set() else k.KVM_EXIT_SHUTDOWN)
    bench.start()
    bench.vcpu.guest_sees()
    assert event.is_set() and bench.handler.calls == []


def test_what_waits_under_the_same_key_is_replaced(bench: Bench) -> None:
    """A vCPU that is never scheduled cannot be made to pile up what others submit for it."""
    ran: list[int] = []
    for n in range(1000):
        bench.thread.submit(n % 3, lambda n=n: ran.append(n))  # type: ignore[misc]
    bench.start()
    assert sorted(ran) == [997, 998, 999]


def test_on_its_own_thread_it_runs_at_once_and_last(bench: Bench) -> None:
    """What another vCPU had submitted under the key must not undo what this one does itself."""
    ran: list[str] = []

    def hypercall(*args: object) -> int:
        other = threading.Thread(target=lambda: bench.thread.submit(0, lambda: ran.append("other's")))
        other.start()
        other.join()
        bench.thread.submit(0, lambda: ran.append("own"))
        return 0

    bench.handler.on_hypercall = hypercall  # type: ignore[method-assign,assignment]
    bench.start()
    bench.vcpu.guest_hypercall(1)
    bench.vcpu.guest_sees()
    assert ran == ["own"]


def test_its_own_errors_come_back(bench: Bench) -> None:
    def hypercall(*args: object) -> int:
        def act() -> None:
            raise refuse("KVM_XEN_VCPU_SET_ATTR", 22)

        with pytest.raises(type(refuse("", 22))):
            bench.thread.submit(0, act)
        return 5

    bench.handler.on_hypercall = hypercall  # type: ignore[method-assign,assignment]
    bench.start()
    bench.vcpu.guest_hypercall(1)
    assert bench.vcpu.guest_result() == 5


# -- pausing


def paused(bench: Bench) -> None:
    bench.thread.pause()
    bench.thread.rest()


def test_a_paused_vcpu_is_out_of_the_guest_and_still_does_what_is_submitted(bench: Bench) -> None:
    bench.start()
    paused(bench)
    assert bench.thread.state == "paused"
    bench.vcpu.entered.clear()
    bench.vcpu.guest_io(0x20)
    for key in range(3):
        act, event, threads = done(bench)
        bench.thread.submit(key, act)
        assert event.wait(WAIT) and threads == [bench.thread._thread.ident]
    assert not bench.vcpu.entered.is_set() and bench.thread.exits["io"] == 0
    bench.thread.resume()
    bench.vcpu.guest_sees()
    assert bench.thread.state == "running" and bench.thread.exits["io"] == 1


def test_paused_before_its_first_instruction(bench: Bench) -> None:
    paused(bench)
    bench.thread.start()
    paused(bench)
    assert not bench.vcpu.entered.is_set()
    assert bench.thread.registers() == {"rip": 0x1234} | CONTROL
    bench.thread.resume()
    assert bench.vcpu.entered.wait(WAIT)


def test_pausing_and_resuming_at_once_many_times(bench: Bench) -> None:
    bench.start()
    for _ in range(200):
        paused(bench)
        bench.vcpu.entered.clear()
        assert bench.thread._resting
        bench.thread.resume()
    assert bench.vcpu.entered.wait(WAIT)


def test_a_paused_vcpu_can_be_stopped(bench: Bench) -> None:
    bench.start()
    paused(bench)
    bench.end()
    paused(bench)
    assert bench.thread.state == "stopped"


def test_a_pause_waits_for_the_answer_under_way(bench: Bench) -> None:
    inside, go = threading.Event(), threading.Event()

    def hypercall(*args: object) -> int:
        inside.set()
        go.wait(WAIT)
        return 0

    bench.handler.on_hypercall = hypercall  # type: ignore[method-assign,assignment]
    bench.start()
    bench.vcpu.guest_hypercall(1)
    assert inside.wait(WAIT)
    waiter = threading.Thread(target=paused, args=(bench,))
    waiter.start()
    waiter.join(0.02)
    assert waiter.is_alive()
    go.set()
    waiter.join(WAIT)
    assert not waiter.is_alive()


# -- registers


def test_registers_of_a_vcpu_that_runs_rests_and_is_over(bench: Bench) -> None:
    assert bench.thread.registers() is None
    bench.start()
    expected = {"rip": 0x1234} | CONTROL
    assert bench.thread.registers() == expected
    paused(bench)
    assert bench.thread.registers() == expected
    bench.end()
    bench.vcpu.close()
    assert bench.thread.registers() == expected


def test_registers_are_not_waited_for_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()

    def hypercall(*args: object) -> int:
        inside.set()
        go.wait(WAIT)
        return 0

    monkeypatch.setattr("xenpvd.vmm.vcpu.PATIENCE", 0.05)
    bench.handler.on_hypercall = hypercall  # type: ignore[method-assign,assignment]
    bench.start()
    bench.vcpu.guest_hypercall(1)
    assert inside.wait(WAIT)
    with pytest.raises(TimedOut, match="vCPU 7 does not answer"):
        bench.thread.registers()
    go.set()


def test_what_the_host_knows_of_its_time(bench: Bench) -> None:
    assert bench.thread.runtime() == (0, 0)
    bench.start()
    ran, waited = bench.thread.runtime_elsewhere()
    assert ran > 0 and waited >= 0
    bench.end()
    assert bench.thread.runtime() == (0, 0)


# -- the end


def test_stop_interrupts_a_guest_that_never_exits(bench: Bench) -> None:
    bench.start()
    bench.end()
    assert not bench.thread._thread.is_alive()


def test_the_guest_is_not_entered_after_a_stop_in_its_own_exit(bench: Bench) -> None:
    """E15: no instruction of the vCPU runs after SCHEDOP_shutdown."""

    def hypercall(*args: object) -> int:
        bench.thread.stop()
        bench.vcpu.entered.clear()
        return 0

    bench.handler.on_hypercall = hypercall  # type: ignore[method-assign,assignment]
    bench.start()
    bench.vcpu.guest_hypercall(29, 2)
    bench.thread.join()
    assert not bench.vcpu.entered.is_set()


def test_after_the_end_nothing_touches_the_vcpu(bench: Bench) -> None:
    bench.start()
    bench.end()
    bench.vcpu.close()  # FakeVcpu asserts that nobody requests an exit any more
    act, event, _ = done(bench)
    bench.thread.submit(0, act)
    bench.thread.stop()
    assert not event.is_set()


def test_kicks_that_race_with_the_end() -> None:
    """A signal to a thread that has ended is undefined; the vCPU may be closed by then."""
    for _ in range(100):
        one = Bench()
        go = threading.Barrier(2)

        def kick(one: Bench = one, go: threading.Barrier = go) -> None:
            go.wait()
            for _ in range(20):
                one.thread.submit(0, lambda: None)

        kicker = threading.Thread(target=kick)
        kicker.start()
        one.start()
        go.wait()
        one.end()
        one.vcpu.close()
        kicker.join()
        assert one.handler.calls == []


def test_a_thread_never_started_is_stopped_and_joined() -> None:
    bench = Bench()
    bench.end()


def test_a_host_out_of_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_start)
        with pytest.raises(HostError, match=r"cannot start vCPU 7: can't start new thread\. Raise"):
            bench.thread.start()


# -- what a watchdog asks


def test_a_handler_that_does_not_end_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, let_go = threading.Event(), threading.Event()

    def on_debug_port(data: bytes) -> None:
        inside.set()
        assert let_go.wait(WAIT)

    monkeypatch.setattr(bench.handler, "on_debug_port", on_debug_port)
    bench.start()
    assert bench.thread.stuck(0) is None, "a guest that runs, or does nothing, is its own affair"
    bench.vcpu.guest_io(0xE9, b"x")
    assert inside.wait(WAIT)
    assert bench.thread.stuck(60) is None
    assert bench.thread.stuck(0) == "vCPU 7 has not come back to the guest for 0 s"
    let_go.set()
    bench.vcpu.guest_sees()
    bench.end()
    assert bench.thread.over and bench.thread.stuck(0) is None


def test_what_was_submitted_and_does_not_end_is_seen_in_a_pause_too(bench: Bench) -> None:
    inside, let_go = threading.Event(), threading.Event()

    def act() -> None:
        inside.set()
        assert let_go.wait(WAIT)

    bench.start()
    bench.thread.pause()
    bench.thread.rest()
    assert bench.thread.stuck(0) is None, "at rest"
    bench.thread.submit("key", act)
    assert inside.wait(WAIT)
    assert bench.thread.stuck(0)
    let_go.set()
    bench.thread.resume()
