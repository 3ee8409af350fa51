"""Disks and console."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer

DISK = {"vdev": "xvdb", "target": "/srv/data.img", "access": "ro"}

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("drive.add", DISK, {"changed": True, "connected_ms": 41.0}),
    ("drive.remove", {"vdev": "xvdz", "missing_ok": True}, {"removed": False}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    await peer.answers(method, params, expected)


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
