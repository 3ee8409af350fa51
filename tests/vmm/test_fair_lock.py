"""The machine's lock: one holder, again and again, and nobody who takes it all the time keeps others out."""

from __future__ import annotations

import threading
import time

from xenpvd.vmm.fair_lock import FairLock

WAIT = 10


def test_one_holder_who_may_take_it_again() -> None:
    lock, entered = FairLock(), threading.Event()

    def other() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=other)
    with lock:
        with lock:
            thread.start()
        # the other one stands in the turnstile by now, or soon: that must not keep the holder out
        for _ in range(100):
            with lock:
                time.sleep(0.0001)
        assert not entered.is_set()
    thread.join(WAIT)
    assert entered.is_set()


def test_who_waits_is_next() -> None:
    """Each time, though the holder takes it again at once."""
    for _ in range(50):
        lock, order = FairLock(), list[str]()

        def other(lock: FairLock = lock, order: list[str] = order) -> None:
            with lock:
                order.append("other")

        thread = threading.Thread(target=other)
        with lock:
            thread.start()
            end = time.monotonic() + WAIT
            while not lock._turnstile.locked():
                assert time.monotonic() < end
                time.sleep(0)
            lock.let_others()
            order.append("holder")
        thread.join(WAIT)
        assert order == ["other", "holder"]
