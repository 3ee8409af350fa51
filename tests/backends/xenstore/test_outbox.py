from __future__ import annotations

from xenpvd.abi.io_xs_wire import XS_READ, XS_WATCH_EVENT
from xenpvd.backends.xenstore.outbox import Outbox
from xenpvd.backends.xenstore.quota import Quota
from xenpvd.backends.xenstore.wire import Message, Parser


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
    outbox = Outbox(Quota())
    for message in (event("/a"), reply(1), event("/b"), event("/a"), reply(2), event("/b"), event("/c")):
        outbox.put(message)
    assert drain(outbox) == [event("/a"), reply(1), event("/b"), reply(2), event("/c")]
    outbox.put(event("/a"))
    assert drain(outbox) == [event("/a")]


def test_an_event_on_its_way_does_not_swallow_the_next():
    outbox = Outbox(Quota())
    outbox.put(event("/a"))
    outbox.sent(len(outbox.head()[:3]))
    outbox.put(event("/a"))
    outbox.sent(len(outbox.head()))
    assert drain(outbox) == [event("/a")]


def test_special_events_do_not_merge():
    outbox = Outbox(Quota())
    outbox.put(event("@releaseDomain"))
    outbox.put(event("@releaseDomain"))
    assert len(drain(outbox)) == 2


def test_a_reply_is_outstanding_until_its_last_byte():
    outbox = Outbox(Quota())
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
    outbox = Outbox(Quota(watch_events=2))
    for n in range(5):
        outbox.put(event(f"/{n}"))
        outbox.put(reply(n))
    assert outbox.dropped == 3
    assert outbox.outstanding == 5
    assert len(drain(outbox)) == 7
