"""Bytes and ports as clients read them."""

from __future__ import annotations

from xenpvd.events import Event
from xenpvd.rpc import results
from xenpvd.views import PortInfo


def test_octets() -> None:
    assert results.octets("é".encode()) == {"text": "é", "base64": None}
    assert results.octets(b"\xff\0") == {"text": None, "base64": "/wA="}


def test_ports_are_spelled_as_qemu_does() -> None:
    told = results.evtchn_info(PortInfo(7, 1, "unbound", "0", 0, True, False)).model_dump(by_alias=True)
    assert told == {
        "port": 7, "vcpu": 1, "type": "unbound", "remote-domain": "0", "target": 0, "pending": True,
        "masked": False,
    }  # fmt: skip


def test_a_note_bears_whatever_was_published() -> None:
    data = {"asked_mib": 512, "raw": b"\xff", "odd": object}
    told = results.note("e", Event(1, 2.0, "memory.target", data))
    assert told.data == {"asked_mib": 512, "raw": "_w==", "odd": "<class 'object'>"}
