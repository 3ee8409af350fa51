from __future__ import annotations

import pytest

from tests.fakes.store import FakeStore
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.history import BYTES_MAX, KEPT, History
from xenpvd.backends.xenstore.wire import Message
from xenpvd.figures import XenstoreCount


@pytest.fixture
def guest() -> Connection:
    return Connection(FakeStore().guest)


def test_who_what_when_and_what_came_of_it(guest: Connection):
    times = iter((5.0, 6.5))
    history = History(lambda: next(times))
    history.record(guest, Message(abi.XS_WRITE, 7, 3, b"/a\0\xff two\n"), abi.XS_WRITE, b"OK\0")
    assert history.last() == "d1 ring tx 3: WRITE /a \\xff two\\n -> OK"
    history.record(guest, Message(99, 7, 0, b""), abi.XS_ERROR, b"ENOSYS\0")
    assert history.last() == "d1 ring tx 0: 99 -> ENOSYS"
    newest, oldest = history.newest_first()
    assert (newest.seq, newest.time, newest.op, newest.arguments) == (2, 6.5, "99", ())
    assert (oldest.who, oldest.domid, oldest.tx, oldest.result) == ("ring", 1, 3, "OK")
    assert oldest.arguments == ("/a", "\\xff two\\n")


def test_counts_are_of_all_and_of_no_name_that_is_made_up(guest: Connection):
    history = History(float)
    for _ in range(KEPT + 5):
        history.record(guest, Message(abi.XS_WRITE, 7, 0, b"/a\0"), abi.XS_WRITE, b"OK\0")
    history.record(guest, Message(abi.XS_TRANSACTION_END, 7, 3, b"T\0"), abi.XS_ERROR, b"EAGAIN\0")
    for type_ in range(1000, 1100):
        history.record(guest, Message(type_, 7, 0, b""), abi.XS_ERROR, b"ENOSYS\0")
    assert history.counts() == (
        XenstoreCount("unknown", "ENOSYS", 100),
        XenstoreCount("TRANSACTION_END", "EAGAIN", 1),
        XenstoreCount("WRITE", "OK", KEPT + 5),
    )


def test_it_is_bounded(guest: Connection):
    history = History(float)
    for _ in range(KEPT + 5):
        history.record(guest, Message(abi.XS_WRITE, 7, 0, b"/a\0" + b"x" * 4000), abi.XS_WRITE, b"OK\0")
    kept = list(history.newest_first())
    assert [operation.seq for operation in kept] == list(range(KEPT + 5, 5, -1))
    assert len("".join(kept[0].arguments)) < BYTES_MAX
