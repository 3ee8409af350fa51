"""A guest that floods its log costs a bounded buffer and one wake-up."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from xenpvd.vmm.shim_log import ShimLog


class Reader:
    def __init__(self, limit: int = 100) -> None:
        self.woken = 0
        self.log = ShimLog(self._wake, limit)

    def _wake(self) -> None:
        self.woken += 1


def test_pieces_come_out_together_after_one_wake_up() -> None:
    reader = Reader()
    for piece in (b"(XEN) ", b"", b"hello", b"\n"):
        reader.log.put(piece)
    assert reader.woken == 1
    assert reader.log.take() == b"(XEN) hello\n"
    assert reader.log.take() == b""
    reader.log.put(b"more")
    assert reader.woken == 2


def test_nothing_wakes_nobody() -> None:
    reader = Reader()
    reader.log.put(b"")
    assert reader.woken == 0


def test_the_newest_is_kept_and_the_loss_is_told() -> None:
    reader = Reader(limit=10)
    for n in range(100_000):
        reader.log.put(b"%06d\n" % n)
    assert reader.woken == 1
    assert reader.log.take() == b"[xenpvd: 699990 bytes of this log were lost]\n98\n099999\n"
    reader.log.put(b"x" * 11)
    assert reader.log.take() == b"[xenpvd: 1 bytes of this log were lost]\n" + b"x" * 10
    reader.log.put(b"fine")
    assert reader.log.take() == b"fine"
    assert reader.log.lost == 699991, "of all so far"


@given(st.lists(st.binary(max_size=8) | st.none(), max_size=40))
def test_what_was_put_is_taken_or_counted(steps: list[bytes | None]) -> None:
    reader = Reader(limit=16)
    put = taken = woken = 0
    for step in steps:
        if step is None:
            data = reader.log.take()
            if data.startswith(b"[xenpvd: "):
                head, _, data = data.partition(b"\n")
                taken += int(head.split()[1])
            taken += len(data)
            assert taken == put
        else:
            woken += taken == put and step != b""
            put += len(step)
            reader.log.put(step)
    assert reader.woken == woken


def test_writers_and_a_reader_at_once(busy_switching: None) -> None:
    """Every byte comes out, and nobody waits for a wake-up that was lost."""
    woken = threading.Semaphore(0)
    log = ShimLog(woken.release, limit=1 << 20)
    writers = [threading.Thread(target=lambda: [log.put(b"abc") for _ in range(2000)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    total = 0
    while total < 3 * 2000 * 3:
        assert woken.acquire(timeout=10)
        total += len(log.take())
    for writer in writers:
        writer.join()
    assert log.take() == b""


def test_what_comes_while_it_is_taken_is_not_lost() -> None:
    log = ShimLog(lambda: None)
    writer = threading.Thread(target=log.put, args=(b"second",))

    class Slow(bytearray):
        def clear(self) -> None:
            writer.start()
            writer.join(0.05)
            super().clear()

    log._waiting = Slow(b"first")
    assert log.take() == b"first"
    writer.join()
    log._waiting = bytearray(log._waiting)
    assert log.take() == b"second"
