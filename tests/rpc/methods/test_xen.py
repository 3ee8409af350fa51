"""Event channels, grants, hypercalls."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("evtchn.inject", {"port": 2}, {"port": 2, "type": "virq", "pending": True, "remote-domain": ""}),
    ("hypercall.stats", {}, {"total": 42, "recent": [], "exits": {"xen": 42, "io": 7}}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    service.console.print(b"hello\r\n")
    await peer.answers(method, params, expected)


async def test_ports_have_the_names_of_qemu(peer: Peer) -> None:
    console, *_ = await peer.result("evtchn.list")
    assert console == {
        "port": 1,
        "vcpu": 0,
        "type": "interdomain",
        "remote-domain": "0",
        "target": 5,
        "pending": False,
        "masked": False,
    }
    told = await peer.fault("evtchn.inject", port=4095)
    assert told["data"] == {"reason": "NOT_FOUND", "kind": "port", "name": "4095"}


async def test_grants(peer: Peer) -> None:
    ring, _ = await peer.result("grant.list")
    assert ring == {
        "gref": 1,
        "frame": 0xFEFFC,
        "domid": 0,
        "readonly": False,
        "reading": True,
        "writing": True,
        "maps": 1,
    }


async def test_the_newest_hypercalls(peer: Peer) -> None:
    stats = await peer.result("hypercall.stats", recent=2)
    assert [call["seq"] for call in stats["recent"]] == [41, 42]
    assert stats["recent"][1]["args"] == [24, 0xFFFF_8300_0000_7F68]
    assert stats["counts"][1] == {"name": "physdev_op", "count": 12, "results": {"ENOSYS": 11, "ok": 1}}


@pytest.mark.parametrize(
    ("method", "params", "where"),
    [
        ("evtchn.list", {"port": 1}, "port"),
        ("evtchn.inject", {"port": 0}, "port"),
        ("evtchn.inject", {"port": 4096}, "port"),
        ("evtchn.inject", {"port": "1"}, "port"),
        ("grant.list", {"limit": 1}, "limit"),
        ("hypercall.stats", {"recent": -1}, "recent"),
        ("hypercall.stats", {"recent": 257}, "recent"),
    ],
)
async def test_refused_before_anything_happens(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], where: str
) -> None:
    service.faults[method.replace(".", "_")] = AssertionError("the service was asked")
    fault = await peer.fault(method, **params)
    assert fault["code"] == -32602
    assert [error["loc"] for error in fault["data"]["errors"]] == [where]
