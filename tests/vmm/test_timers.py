"""Timers of the outer Xen: in time, once, under the lock, and not while the guest is paused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from xenpvd.errors import KvmError, XenError
from xenpvd.vmm.fair_lock import FairLock
from xenpvd.vmm.timers import Timers

WAIT = 10
MS = 10**6


class Bench:
    """``said`` has what acted; system time is 1 s ahead of the host's clock."""

    def __init__(self) -> None:
        self.lock = FairLock()
        self.said: list[str] = []
        self.faults: list[BaseException] = []
        self.changed = threading.Event()
        self.timers = Timers(self.now, self.lock, self.fault)

    def now(self) -> int:
        return time.monotonic_ns() + 10**9

    def fault(self, fault: BaseException) -> None:
        self.faults.append(fault)
        self.changed.set()

    def say(self, what: str) -> Callable[[], None]:
        def act() -> None:
            self.said.append(what)
            self.changed.set()

        return act

    def arm(self, key: str, after: int, *, by_clock: bool = False) -> None:
        with self.lock:
            self.timers.arm(key, self.now() + after, self.say(key), by_clock=by_clock)

    def wait(self, count: int) -> None:
        while len(self.said) < count:
            assert self.changed.wait(WAIT)
            self.changed.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.timers.stop()
    bench.timers.join()


@pytest.mark.parametrize("after", [-(10**18), 0, 1 * MS])
def test_what_is_over_acts_at_once_and_once(bench: Bench, after: int) -> None:
    bench.arm("a", after)
    bench.wait(1)
    bench.arm("b", 0)
    bench.wait(2)
    assert bench.said == ["a", "b"]


def test_they_act_in_time(bench: Bench) -> None:
    begin = time.monotonic_ns()
    bench.arm("late", 60 * MS)
    bench.wait(1)
    assert bench.said == ["late"] and time.monotonic_ns() - begin >= 60 * MS


def test_what_was_due_first_acts_first(bench: Bench) -> None:
    with bench.lock:  # their thread comes late itself
        bench.timers.arm("late", bench.now(), bench.say("late"))
        bench.timers.arm("soon", bench.now() - 10**9, bench.say("soon"))
    bench.wait(2)
    assert bench.said == ["soon", "late"]


def test_a_far_deadline_is_no_trouble(bench: Bench) -> None:
    """E17: set_timer to 2^63."""
    bench.arm("never", 2**63)
    bench.arm("a", 0)
    bench.wait(1)
    assert bench.said == ["a"]


def test_one_timer_a_key(bench: Bench) -> None:
    for _ in range(1000):
        bench.arm("a", 10**15)
    assert len(bench.timers._timers) == 1
    bench.arm("a", 0)
    bench.wait(1)
    assert bench.said == ["a"] and bench.timers._timers == {}


def test_what_is_disarmed_under_the_lock_does_not_act(bench: Bench) -> None:
    """Though it was due already: a watchdog that was fed in time must not bite."""
    with bench.lock:
        bench.arm("a", 0)
        time.sleep(0.02)  # it is due, and its thread waits for the lock
        bench.timers.disarm("a")
        bench.timers.disarm("other")
    bench.arm("b", 0)
    bench.wait(1)
    assert bench.said == ["b"]


def test_an_act_may_disarm_another(bench: Bench) -> None:
    with bench.lock:
        for key, other in (("a", "b"), ("b", "a")):

            def act(key: str = key, other: str = other) -> None:
                bench.timers.disarm(other)
                bench.say(key)()

            bench.timers.arm(key, bench.now(), act)
    bench.arm("c", 1 * MS)
    while "c" not in bench.said:
        bench.wait(len(bench.said) + 1)
    assert len(bench.said) == 2


def test_a_pause_takes_no_time_but_by_the_guests_clock(bench: Bench) -> None:
    bench.arm("watchdog", 40 * MS)
    bench.arm("virq", 40 * MS, by_clock=True)
    bench.timers.hold()
    bench.timers.hold()
    time.sleep(0.06)  # both would be due: that time passes is what is tested
    assert bench.said == []
    released = time.monotonic_ns()
    bench.timers.release()
    bench.timers.release()
    bench.wait(1)
    assert bench.said == ["virq"]
    bench.wait(2)
    assert time.monotonic_ns() - released >= 30 * MS


def test_nothing_acts_after_the_stop(bench: Bench) -> None:
    with bench.lock:
        bench.arm("a", 0)
        bench.timers.stop()
    bench.timers.join()
    bench.arm("b", 0)
    assert bench.said == []


def test_a_mistake_of_ours_is_told(bench: Bench) -> None:
    mistake = ZeroDivisionError("ours")

    def wrong() -> None:
        raise mistake

    with bench.lock:
        bench.timers.arm("a", 0, wrong)
    assert bench.changed.wait(WAIT)
    assert bench.faults == [mistake]


@pytest.mark.parametrize("fault", [KvmError("no", "KVM_XEN_HVM_EVTCHN_SEND", 22), XenError(22)])
def test_what_kvm_refuses_to_a_timer_is_the_guests_loss(bench: Bench, fault: Exception) -> None:
    def refused() -> None:
        bench.say("refused")()
        raise fault

    with bench.lock:
        bench.timers.arm("a", bench.now(), refused)
    bench.wait(1)
    bench.arm("b", 0)
    bench.wait(2)
    assert bench.said == ["refused", "b"] and bench.faults == []


def test_timers_that_are_always_due_keep_nobody_out(bench: Bench) -> None:
    """32 periodic timers whose acts take longer than the period."""
    over = threading.Event()

    def arm(key: int) -> None:
        def tick() -> None:
            if not over.is_set():
                arm(key)
            bench.say("tick")()
            time.sleep(0.001)  # a slow act

        bench.timers.arm(key, bench.now() + MS, tick)

    with bench.lock:
        for key in range(32):
            arm(key)
    bench.wait(40)  # all are late from now on
    begin, taken = time.monotonic(), 0

    def look() -> None:
        nonlocal taken
        for _ in range(20):
            with bench.lock:
                taken += 1

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    looker.join(3)
    waited = time.monotonic() - begin
    over.set()
    looker.join(WAIT)
    assert taken == 20 and waited < 2


def test_a_host_out_of_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(XenError):
            bench.arm("a", 0)
    bench.arm("b", 0)
    bench.wait(1)
    assert bench.said == ["b"]
