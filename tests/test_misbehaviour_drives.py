"""Clients of a real daemon that add, change and remove disks all at once, with nonsense between, and leave in
the middle of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.machine import FakeMachine
from tests.rpc.conftest import Peer
from tests.test_daemon import Hall
from tests.test_drives_lives import lock_is_free
from xenpvd.backends import device
from xenpvd.config import GuestConfig

SIZE = 1 << 20
NAMES = ("xvdb", "d1", "51728", "0xca10", "xvdc", "xvda")
NONSENSE = (
    None,
    True,
    -1,
    1 << 70,
    1.5,
    "",
    "x" * 5000,
    [],
    {},
    "a\0b",
    "fd:x",
    "/dev/null",
    "/",
    "nbd://h:0/",
)


class Client:
    def __init__(self, hall: Hall, folder: Path, chance: random.Random) -> None:
        self.hall, self.chance = hall, chance
        self.images = [str(folder / f"{name}.img") for name in "bcd"]
        self.answers: Counter[str] = Counter()

    def call(self) -> tuple[str, dict[str, Any]]:
        chance = self.chance
        vdev, target, maybe = chance.choice(NAMES), chance.choice(self.images), chance.random() < 0.5
        calls: list[tuple[str, dict[str, Any]]] = [
            (
                "drive.add",
                {"vdev": vdev, "target": target, "wait": maybe, "timeout": chance.choice((0, 0.1))},
            ),
            ("drive.add", {"vdev": vdev, "device": "cdrom", "wait": False}),
            ("drive.remove", {"vdev": vdev, "force": maybe, "timeout": 0.1}),
            ("drive.swap", {"vdev": vdev, "target": target if maybe else ""}),
            (
                "drive.resize",
                {"vdev": vdev, "size": chance.choice((None, SIZE, 2 * SIZE, 513)), "shrink": maybe},
            ),
            ("drive.set_limits", {"vdev": vdev, "ops_per_second": chance.choice((0, 100))}),
            ("drive.flush", {"vdev": vdev}),
            ("drive.list", {}),
            ("guest.reset" if chance.random() < 0.1 else "guest.stats", {}),
        ]
        method, params = chance.choice(calls)
        if params and chance.random() < 0.25:
            params[chance.choice(list(params))] = chance.choice(NONSENSE)
        return method, params

    async def work(self, rounds: int) -> None:
        peer = await Peer.connect(self.hall.socket)
        for _ in range(rounds):
            method, params = self.call()
            peer.request(method, **params)
            if self.chance.random() < 0.1:
                peer.writer.transport.abort()
                peer = await Peer.connect(self.hall.socket)
                continue
            answer = await peer.receive()
            reason = answer["error"]["data"]["reason"] if "error" in answer else "OK"
            assert reason != "INTERNAL", (method, params, answer)
            self.answers[reason] += 1
        await peer.close()


@pytest.mark.parametrize("seed", range(3))
async def test_each_call_gets_its_answer_and_nothing_is_left(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    """L7, N10, N15, N16."""
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0)  # the guest has no xenbus here
    hall = Hall(tmp_path / "run", definition)
    peer = await hall.peer()
    clients = [Client(hall, tmp_path, random.Random(f"{seed} {n}")) for n in range(6)]
    for image in clients[0].images:
        Path(image).write_bytes(bytes(SIZE))
    await asyncio.gather(*(client.work(60) for client in clients))
    answers: Counter[str] = sum((client.answers for client in clients), Counter())
    assert min(answers[reason] for reason in ("OK", "VALIDATION", "NOT_FOUND", "EXISTS")) > 5, answers
    for drive in await peer.result("drive.list"):
        await peer.result("drive.remove", vdev=drive["vdev"], force=True)
    assert await peer.result("drive.list") == []
    for end in ("/local/domain/1/device/vbd", "/local/domain/0/backend/vbd/1"):
        assert await peer.result("xenstore.list", path=end) == []
    assert (await peer.result("guest.status"))["state"] == "running"
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
    await peer.close()
    hall.daemon.quit("destroy")
    hall.daemon._at_once.set()
    await hall.ended
    assert all(lock_is_free(path) for path in tmp_path.glob("*.img"))
