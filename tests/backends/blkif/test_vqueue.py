"""A queue's rules, with an engine that answers when the test says so."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from xenpvd.abi import vhost_user as abi
from xenpvd.backends.blkif import build, vqueue
from xenpvd.backends.blkif.vqueue import (
    AT_AVAIL,
    AT_DATA,
    AT_HEADERS,
    AT_STATUS,
    AT_USED,
    QUEUE_BYTES,
    Vqueue,
    Written,
)


class Process:
    """An engine's process: its memory, and its end of the queue."""

    def __init__(self, queue: Vqueue) -> None:
        self.shared = mmap.mmap(-1, (queue.index + 1) * QUEUE_BYTES)
        self._queue = queue
        self._done = 0

    def view(self, at: int, count: int) -> memoryview:
        at += self._queue.index * QUEUE_BYTES
        return memoryview(self.shared)[at : at + count]

    def wait(self) -> tuple[int, int, int]:
        """The header of the next request."""
        while self.view(AT_AVAIL + 2, 2).cast("H")[0] == self._done:
            pass
        return abi.OUTHDR.unpack(self.view(AT_HEADERS, 16))

    def answer(self, status: int = abi.VIRTIO_BLK_S_OK) -> None:
        self.view(AT_STATUS, 1)[0] = status
        self._done += 1
        self.view(AT_USED + 2, 2).cast("H")[0] = self._done
        os.eventfd_write(self._queue.call_fd, 1)


class User:
    """Somebody who does one thing in a thread; :meth:`end` gives what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.fault: OSError | None = None

        def run() -> None:
            try:
                call()
            except OSError as fault:
                self.fault = fault

        self._thread = Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> OSError | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.fault


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def queue(written: Written) -> Iterator[Vqueue]:
    taken_fd = os.eventfd(0, os.EFD_NONBLOCK)
    queue = Vqueue(1, written, taken_fd)
    yield queue
    queue.close()
    os.close(taken_fd)


def test_the_layout_is_that_of_the_other_half() -> None:
    source = (build.SOURCES / "vhost.h").read_text()
    numbers = dict(re.findall(r"\b((?:AT|VQ)_[A-Z]+) = (0x[0-9a-f]+|1 << 16|\d+)", source))
    for name in ("AT_DESC", "AT_AVAIL", "AT_USED", "AT_HEADERS", "AT_STATUS", "AT_DATA"):
        assert int(numbers[name], 0) == getattr(vqueue, name)
    assert (int(numbers["VQ_SIZE"]), int(numbers["VQ_CHUNKS"])) == (vqueue.QUEUE_SIZE, vqueue.CHUNKS)
    assert numbers["VQ_CHUNK"] == "1 << 16" and vqueue.CHUNK == 1 << 16
    assert Path(build.SOURCES, "plane.h").exists()


def test_a_write_and_a_flush(queue: Vqueue, written: Written) -> None:
    process = Process(queue)
    queue.attach(process.shared, 4096)
    user = User(lambda: queue.transfer(abi.VIRTIO_BLK_T_OUT, 1024, [memoryview(b"ab"), memoryview(b"cd")]))
    assert process.wait() == (abi.VIRTIO_BLK_T_OUT, 0, 2)
    assert bytes(process.view(AT_DATA, 4)) == b"abcd"
    process.answer()
    assert user.end() is None and written.unflushed == 1
    user = User(queue.flush)
    assert process.wait()[0] == abi.VIRTIO_BLK_T_FLUSH
    written.add()  # another queue's, which the flush does not cover
    process.answer()
    assert user.end() is None and written.unflushed == 1


def test_a_discard_goes_in_steps(queue: Vqueue) -> None:
    process = Process(queue)
    queue.attach(process.shared, 4096)
    user = User(lambda: queue.discard(8192, 6144))
    for expected in ((16, 8, 0), (24, 4, 0)):
        assert process.wait()[0] == abi.VIRTIO_BLK_T_DISCARD
        assert abi.DISCARD.unpack(process.view(AT_DATA, 16)) == expected
        process.answer()
    assert user.end() is None


@pytest.mark.parametrize(("status", "number"), [(1, errno.EIO), (2, errno.EOPNOTSUPP), (77, errno.EIO)])
def test_a_failure_is_the_request_s(queue: Vqueue, written: Written, status: int, number: int) -> None:
    process = Process(queue)
    queue.attach(process.shared, 0)
    user = User(lambda: queue.transfer(abi.VIRTIO_BLK_T_OUT, 0, [memoryview(b"x")]))
    process.wait()
    process.answer(status)
    fault = user.end()
    assert fault is not None and fault.errno == number and written.acked.value == 0


def test_the_next_process_does_it_again(queue: Vqueue) -> None:
    first, second = Process(queue), Process(queue)
    queue.attach(first.shared, 0)
    got = bytearray(4)
    user = User(lambda: queue.transfer(abi.VIRTIO_BLK_T_IN, 0, [memoryview(got)]))
    first.wait()
    queue.detach()
    while queue.holds:
        pass
    first.view(AT_DATA, 4)[:] = b"dead"
    first.answer()  # nobody looks any more
    queue.attach(second.shared, 0)
    second.wait()
    second.view(AT_DATA, 4)[:] = b"live"
    second.answer()
    assert user.end() is None and got == b"live"


def test_nobody_holds_what_nobody_uses(queue: Vqueue) -> None:
    process = Process(queue)
    queue.attach(process.shared, 0)
    user = User(queue.flush)
    process.wait()
    process.answer()
    assert user.end() is None and queue.holds
    queue.detach()
    assert not queue.holds


def test_what_is_given_up_fails_until_it_is_released(queue: Vqueue) -> None:
    user = User(queue.flush)
    queue.give_up()
    fault = user.end()
    assert fault is not None and fault.errno == errno.EIO
    queue.release()
    process = Process(queue)
    queue.attach(process.shared, 0)
    user = User(queue.flush)
    process.wait()
    process.answer()
    assert user.end() is None
