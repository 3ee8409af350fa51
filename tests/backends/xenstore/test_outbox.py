from __future__ import annotations

from xenpvd.abi.io_xs_wire import XS_READ, XS_WATCH_EVENT
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.outbox import BYTES_MAX, Outbox
from xenpvd.backends.xenstore.quota import Quota
from xenpvd.backends.xenstore.wire import Message, Parser


class Rig:
    """A domain's outbox, with a clock that the test sets."""

    def __init__(self, **limits: int) -> None:
        self.now = 0.0
        self.drops = 0
        self.connection = Connection(Domain(1, Quota(**limits)))
        self.domain = self.connection.domain
        self.outbox = Outbox(self.connection, lambda: self.now, self.dropped)

    def dropped(self) -> None:
        self.drops += 1


def event(path: str) -> Message:
    return Message(XS_WATCH_EVENT, 0, 0, f"{path}\0token\0".encode())


def reply(req_id: int) -> Message:
    return Message(XS_READ, req_id, 0, b"value")


def drain(outbox: Outbox, piece: int = 7) -> list[Message]:
    parser = Parser()
    while data := outbox.head():
        parser.feed(bytes(data[:piece]))
        outbox.sent(len(data[:piece]))
    return list(iter(parser.next, None))


def test_order_is_kept_and_equal_events_merge():
    outbox = Rig().outbox
    for message in (event("/a"), reply(1), event("/b"), event("/a"), reply(2), event("/b"), event("/c")):
        outbox.put(message)
    assert drain(outbox) == [event("/a"), reply(1), event("/b"), reply(2), event("/c")]
    outbox.put(event("/a"))
    assert drain(outbox) == [event("/a")]


def test_an_event_on_its_way_does_not_swallow_the_next():
    outbox = Rig().outbox
    outbox.put(event("/a"))
    outbox.sent(len(outbox.head()[:3]))
    outbox.put(event("/a"))
    outbox.sent(len(outbox.head()))
    assert drain(outbox) == [event("/a")]


def test_special_events_do_not_merge():
    outbox = Rig().outbox
    outbox.put(event("@releaseDomain"))
    outbox.put(event("@releaseDomain"))
    assert len(drain(outbox)) == 2


def test_a_reply_is_outstanding_until_its_last_byte():
    outbox = Rig().outbox
    outbox.put(reply(1))
    outbox.put(event("/a"))
    assert outbox.outstanding == 1
    outbox.sent(len(outbox.head()) - 1)
    assert outbox.outstanding == 1
    outbox.sent(1)
    assert outbox.outstanding == 0
    outbox.head()
    assert outbox.outstanding == 0


def test_events_are_bounded_and_replies_are_not():
    rig = Rig(watch_events=2)
    outbox = rig.outbox
    for n in range(5):
        outbox.put(event(f"/{n}"))
        outbox.put(reply(n))
    assert rig.drops == 1, "told once, until something is read"
    assert outbox.outstanding == 5
    assert len(drain(outbox)) == 7
    outbox.put(event("/x"))
    outbox.put(event("/y"))
    outbox.put(event("/z"))
    assert rig.drops == 2


def test_an_event_that_waits_too_long_gives_way_to_the_next():
    rig = Rig(event_timeout=20)
    rig.outbox.put(reply(1))
    rig.outbox.put(event("/old"))
    rig.now = 10.0
    rig.outbox.put(event("/a"))
    rig.now = 20.0
    rig.outbox.put(event("/b"))
    assert rig.drops == 0
    rig.now = 20.1
    rig.outbox.put(event("/old"))
    assert rig.drops == 0, "it is the same one"
    rig.outbox.put(event("/c"))
    assert rig.drops == 1
    rig.outbox.put(event("/old"))
    assert drain(rig.outbox) == [reply(1), event("/a"), event("/b"), event("/c"), event("/old")]
    assert (rig.domain.memory, rig.domain.outstanding) == (0, 0)


def test_what_is_being_sent_is_never_dropped():
    rig = Rig(event_timeout=1)
    rig.outbox.put(event("/a"))
    begun = bytes(rig.outbox.head()[:5])
    rig.outbox.sent(5)
    rig.now = 9.0
    rig.outbox.put(event("/b"))
    rest = bytes(rig.outbox.head())
    assert b"/a" in begun + rest
    assert rig.drops == 0


def test_what_waits_is_paid_for_and_a_reader_in_debt_is_behind():
    rig = Rig(memory=100)
    rig.domain.memory = 60  # its nodes
    rig.outbox.put(reply(1))
    assert rig.domain.memory == 60 + 16 + 5
    assert not rig.outbox.behind
    rig.outbox.put(reply(2))
    assert rig.outbox.behind
    assert len(drain(rig.outbox)) == 2
    rig.domain.memory = 200
    assert not rig.outbox.behind, "it has read all: what it asks may free memory"


def test_an_event_that_has_no_room_makes_deaf_until_something_is_read():
    """One has room always; a reply counts as well."""
    rig = Rig(memory=100)
    rig.domain.memory = 90  # its nodes
    rig.outbox.put(event("/a"))
    assert not rig.connection.deaf
    for path in ("/b", "/c"):
        rig.outbox.put(event(path))
    assert rig.connection.deaf and rig.drops == 1
    assert drain(rig.outbox) == [event("/a")]
    assert not rig.connection.deaf and rig.domain.memory == 90


def test_a_reply_that_waits_takes_no_events_room():
    """As of the request that has set a watch, whose first event comes right behind."""
    rig = Rig(memory=100)
    rig.domain.memory = 90
    rig.outbox.put(reply(1))
    rig.outbox.put(event("/a"))
    assert drain(rig.outbox) == [reply(1), event("/a")] and rig.drops == 0
    rig.outbox.put(reply(2))
    rig.outbox.head()
    rig.outbox.put(event("/a"))
    assert drain(rig.outbox) == [reply(2), event("/a")] and rig.drops == 0


def test_deafness_ends_when_what_waits_is_too_old():
    rig = Rig(watch_events=1, event_timeout=20)
    rig.outbox.put(event("/a"))
    rig.now = 5.0
    rig.outbox.put(event("/b"))
    assert rig.connection.deaf
    rig.now = 20.1
    assert not rig.connection.deaf, "or nobody would ever look how old it is"
    rig.outbox.put(event("/c"))
    assert drain(rig.outbox) == [event("/c")]


def test_forgetting_gives_all_back():
    rig = Rig()
    for message in (reply(1), event("/a"), reply(2), event("/b")):
        rig.outbox.put(message)
    rig.outbox.sent(len(rig.outbox.head()[:3]))
    assert rig.domain.outstanding == 2
    rig.outbox.clear()
    assert (rig.domain.memory, rig.domain.outstanding, rig.outbox.outstanding) == (0, 0, 0)
    rig.outbox.put(event("/a"))
    assert drain(rig.outbox) == [event("/a")]


def test_bytes_are_bounded_as_well():
    """Whoever it is: domain 0 may have 65536 events, but not of 4 KiB each."""
    rig = Rig(watch_events=1 << 20, memory=1 << 40)
    long = "x" * 3000
    for n in range(3000):
        rig.outbox.put(event(f"/{n}/{long}"))
    assert rig.drops == 1 and rig.domain.memory <= BYTES_MAX + 4096
    assert len(drain(rig.outbox)) < 1500
    assert rig.domain.memory == 0
    rig.outbox.put(event("/a"))
    assert drain(rig.outbox) == [event("/a")]


def test_who_is_told_of_a_drop_may_end_it_all():
    rig = Rig(event_timeout=1)
    rig.outbox = Outbox(rig.connection, lambda: rig.now, lambda: rig.outbox.clear())
    rig.outbox.put(event("/old"))
    rig.now = 5.0
    rig.outbox.put(event("/new"))
    assert rig.domain.memory == 0 and drain(rig.outbox) == []
