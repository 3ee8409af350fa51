"""The wire by itself: what is refused, and how things are told."""

from __future__ import annotations

from typing import Any

import pytest

from xenpvd.errors import NotFound
from xenpvd.events import Event
from xenpvd.rpc.qmp.protocol import Refused, Request, encode, error, event, reply, request_of


def test_requests() -> None:
    assert request_of({"execute": "stop"}) == Request("stop", {})
    assert request_of({"execute": "a", "arguments": {"b": 1}, "id": None}) == Request("a", {"b": 1})
    bad: list[Any] = [None, 1, "stop", [], {}, {"execute": 1}, {"execute": "a", "x": 1}, {"exec-oob": "a"}]
    for wrong in bad:
        with pytest.raises(Refused):
            request_of(wrong)


def test_replies_have_the_id_of_a_request_that_has_one() -> None:
    assert reply({"execute": "a"}, None) == {"return": {}}
    assert reply({"execute": "a", "id": None}, []) == {"return": [], "id": None}
    assert error([], Refused("no.")) == {"error": {"class": "GenericError", "desc": "no."}}
    assert error({"id": 5}, Refused("no.", "CommandNotFound")) == {
        "error": {"class": "CommandNotFound", "desc": "no."},
        "id": 5,
    }


def test_what_is_not_there() -> None:
    assert error({}, NotFound("no such disk.", "drive", "xvda"))["error"]["class"] == "DeviceNotFound"
    assert error({}, NotFound("no such port.", "port", "7"))["error"]["class"] == "GenericError"


def test_events_have_a_time_in_two_parts() -> None:
    assert event(Event(3, 1700000000.25, "STOP")) == {
        "event": "STOP",
        "timestamp": {"seconds": 1700000000, "microseconds": 250000},
    }
    assert event(Event(3, 0.9999999, "RESET", {"guest": True}))["timestamp"] == {
        "seconds": 1,
        "microseconds": 0,
    }


def test_the_wire_is_ascii() -> None:
    assert encode({"return": "ä€\U0001f600"}) == b'{"return": "\\u00e4\\u20ac\\ud83d\\ude00"}\r\n'
