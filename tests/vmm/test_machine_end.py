"""How a machine ends, and that nobody waits for each other."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.kvm import FakeSystem, FakeVcpu
from tests.vmm.bench import ARG, EVTCHN, HVM, SCHED, Bench
from xenpvd.abi import linux_kvm as k
from xenpvd.errors import HostError
from xenpvd.vmm.vcpu import VcpuThread


@pytest.mark.parametrize(
    "act, reason, detail",
    [
        (lambda b: b.ask(SCHED, 2, "<I", 0), "poweroff", "SCHEDOP_shutdown(poweroff)"),
        (lambda b: b.vcpus[1].guest_io(0x600, b"\x34"), "poweroff", "ACPI S5"),
        (lambda b: b.ask(SCHED, 2, "<I", 1), "reboot", "SCHEDOP_shutdown(reboot)"),
        (lambda b: b.ask(SCHED, 2, "<I", 3), "crash", "SCHEDOP_shutdown(crash)"),
        (lambda b: b.ask(SCHED, 2, "<I", 4), "watchdog", "SCHEDOP_shutdown(watchdog)"),
        (
            lambda b: b.vcpus[1].guest_exits(lambda v: k.KVM_EXIT_SHUTDOWN),
            "crash",
            "vCPU 1: KVM exit shutdown (triple fault)",
        ),
    ],
)
async def test_a_guest_ends(
    either: Bench, act: Callable[[Bench], object], reason: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = either
    for what in ("guest_result", "guest_rax"):
        monkeypatch.setattr(FakeVcpu, what, lambda self: 0)  # there is no next entry
    bench.machine.start()
    act(bench)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    (end,) = bench.owner.ends
    assert end[:2] == (reason, detail)
    assert (end[2] is not None) == (reason in ("crash", "watchdog")), "registers come with a crash"
    assert end[2] is None or end[2].keys() >= {"rip", "cr0", "cr2", "cr3", "cr4", "efer"}
    for vcpu in bench.machine._vcpus:
        vcpu._thread.join(5)
    assert not any(vcpu._thread.is_alive() for vcpu in bench.machine._vcpus)
    bench.machine.end("crash", "late", None)
    await asyncio.sleep(0)
    assert len(bench.owner.ends) == 1
    assert bench.owner.threads == {threading.get_ident()}


async def test_the_last_words_come_before_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVcpu, "guest_result", lambda self: 0)
    order: list[str] = []
    monkeypatch.setattr(bench.owner, "machine_log", lambda data: order.append(data.decode()))
    monkeypatch.setattr(
        bench.owner, "machine_ended", lambda *args: (order.append(args[0]), bench.owner.ended.set())
    )
    bench.machine.start()
    bench.vcpus[0].guest_io(0xE9, b"Panic on CPU 0")
    bench.ask(SCHED, 2, "<I", 3)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    assert order == ["Panic on CPU 0", "crash"]


async def test_a_mistake_of_ours_ends_the_guest_as_a_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*args: object) -> int:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(bench.machine._xen.hypercalls, "call", wrong)
    bench.machine.start()
    bench.vcpus[0].guest_hypercall(SCHED, 0)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    assert bench.owner.ends == [("fault", "ZeroDivisionError: ours", None)]
    assert "vcpu0 failed" in caplog.text


async def test_stop_is_not_an_end(bench: Bench) -> None:
    bench.machine.start()
    await asyncio.to_thread(bench.machine.stop)
    bench.machine.end("crash", "late", None)
    await asyncio.sleep(0)
    assert bench.owner.ends == []
    bench.machine.close()
    assert bench.vm.closed


@pytest.fixture
def taken(either: Bench) -> Iterator[None]:
    """Somebody has the machine's lock and does not let it go."""
    has, done = threading.Event(), threading.Event()

    def hold() -> None:
        with either.machine._lock:
            has.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(10)
    yield
    done.set()
    thread.join(10)


async def test_a_stop_waits_for_no_lock(either: Bench, taken: None) -> None:
    either.machine.start()
    await asyncio.wait_for(asyncio.to_thread(either.machine.stop), 5)


async def test_an_end_waits_for_no_lock_and_the_first_counts(either: Bench, taken: None) -> None:
    either.machine.start()
    for reason in "poweroff", "crash":
        await asyncio.wait_for(asyncio.to_thread(either.machine.end, reason, "", None), 5)
    await asyncio.wait_for(either.owner.ended.wait(), 5)
    assert either.owner.ends == [("poweroff", "", None)]


async def test_an_end_before_the_start_is_told_at_once(bench: Bench) -> None:
    bench.machine.end("fault", "task x", None)
    assert bench.owner.ends == [("fault", "task x", None)]


def test_an_end_after_the_loop_is_gone_is_nobodys(system: FakeSystem) -> None:
    async def start() -> Bench:
        bench = Bench()
        bench.machine.start()
        return bench

    bench = asyncio.run(start())
    bench.machine.end("crash", "late", None)
    bench.machine.stop()
    bench.machine.close()
    assert bench.owner.ends == []


async def test_a_host_out_of_threads_starts_no_vcpu(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """P8."""
    start = VcpuThread.start

    def second_fails(self: VcpuThread) -> None:
        if self.id == 1:
            raise HostError("cannot start vCPU 1", 11, "vcpu1")
        start(self)

    monkeypatch.setattr(VcpuThread, "start", second_fails)
    with pytest.raises(HostError):
        bench.machine.start()
    assert not any(vcpu._thread.is_alive() for vcpu in bench.machine._vcpus)


# -- deadlock freedom


async def test_nobody_waits_for_each_other(either: Bench, busy_switching: None) -> None:
    """vCPUs set one another's attributes while backends notify, the loop looks, and the guest is paused again
    and again; at the end every hypercall has its answer."""
    bench, calls = either, 150
    memory = bench.machine.memory
    bench.machine.start()
    bench.place_shared_info()
    port = bench.machine.bind_interdomain(bench.machine.console_port)
    done = threading.Event()
    for n in range(2):
        other = 1 - n
        memory.write(ARG + 64 + 64 * n, struct.pack("<IB3x", other, 0xF1))
        memory.write(ARG + 256 + 64 * n, struct.pack("<II", bench.machine.console_port, other))
        for call in range(calls):
            op, arg = ((HVM, 23), ARG + 64 + 64 * n) if call % 2 else ((EVTCHN, 8), ARG + 256 + 64 * n)
            bench.call(*op, arg, vcpu=n)

    def notify() -> None:
        while not done.is_set():
            port.notify()

    notifier = threading.Thread(target=notify)
    notifier.start()
    try:
        while bench.machine.hypercall_count < 1 + 2 * calls:
            await asyncio.to_thread(bench.machine.pause)
            bench.machine.vcpus(regs=True)
            bench.machine.resume()
            bench.machine.ports()
            bench.machine.inject(bench.machine.store_port)
    finally:
        done.set()
        notifier.join(10)
    assert not notifier.is_alive()
    assert {name for one in bench.machine.hypercall_stats(0).counts for name in one.results} == {"ok"}
    port.close()


async def test_a_vcpu_that_does_not_come_back_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, let_go = threading.Event(), threading.Event()

    def call(*args: object) -> int:
        inside.set()
        assert let_go.wait(10)
        return 0

    monkeypatch.setattr(bench.machine._xen, "call", call)
    assert bench.machine.stuck(0) is None
    bench.machine.start()
    assert all(vcpu.entered.wait(10) for vcpu in bench.vcpus)
    assert bench.machine.stuck(0) is None
    bench.call(EVTCHN, 4, ARG, vcpu=1)
    assert inside.wait(10)
    assert bench.machine.stuck(0) == "vCPU 1 has not come back to the guest for 0 s"
    assert bench.machine.stuck(60) is None
    bench.machine.end("poweroff", "", None)
    assert bench.machine.stuck(0) == "vCPU 1 has not come back to the guest for 0 s", (
        "it keeps the end waiting"
    )
    let_go.set()


async def test_a_thread_that_is_gone_is_told_unless_the_guest_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.machine, "fault", lambda fault: None)  # as if that failed, too
    monkeypatch.setattr(bench.machine._xen, "call", lambda *args: 1 // 0)
    bench.machine.start()
    bench.call(EVTCHN, 4, ARG, vcpu=1)
    bench.machine._vcpus[1].join()
    assert bench.machine.stuck(60) == "the thread of vCPU 1 is gone"
    bench.machine.end("poweroff", "", None)
    assert bench.machine.stuck(60) is None
