"""Disks and console."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.errors import TimedOut

DISK = {"vdev": "xvdb", "target": "/srv/data.img", "access": "ro"}

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("drive.add", DISK, {"changed": True, "connected_ms": 41.0}),
    ("drive.remove", {"vdev": "xvdz", "missing_ok": True}, {"removed": False}),
    ("console.read", {"since": 2, "max": 3}, {"start": 2, "end": 5, "lost": 0, "text": "llo"}),
    ("console.read", {"stream": "xen", "max": 5}, {"text": "(XEN)"}),
    ("console.write", {"text": "ls\r"}, {"written": 3}),
    ("console.write", {"base64": "/wA="}, {"written": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    service.console.print(b"hello\r\n")
    await peer.answers(method, params, expected)


@pytest.mark.parametrize(("params", "timeout"), [({}, 30.0), ({"timeout": 0}, 0.0), ({"timeout": 1.5}, 1.5)])
async def test_write_has_a_limit_of_time(
    peer: Peer, service: FakeService, params: dict[str, Any], timeout: float
) -> None:
    asked: list[float] = []

    async def write(data: bytes, timeout: float) -> int:
        asked.append(timeout)
        raise TimedOut("cannot type all of it", written=2)

    service.console_write = write  # type: ignore[method-assign]
    told = await peer.fault("console.write", text="ls\r", **params)
    assert told["code"] == 1005
    assert told["data"] == {"reason": "TIMEOUT", "written": 2}
    assert asked == [timeout]


async def test_drives_come_and_go(peer: Peer, service: FakeService) -> None:
    await peer.result("drive.add", **DISK)
    assert (await peer.result("drive.add", **DISK))["changed"] is False
    assert (await peer.fault("drive.add", **{**DISK, "target": "/other"}))["data"]["reason"] == "EXISTS"
    assert [drive["target"] for drive in await peer.result("drive.list")] == ["/srv/data.img"]
    assert await peer.result("drive.remove", vdev="xvdb") == {"removed": True}
    assert (await peer.fault("drive.remove", vdev="xvdb"))["data"] == {
        "reason": "NOT_FOUND",
        "kind": "drive",
        "name": "xvdb",
    }
