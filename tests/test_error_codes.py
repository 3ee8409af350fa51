"""Every error of the API's document comes out of a real daemon. A code that nothing gives is a promise that
nobody keeps: it leaves the document, or gets its case here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.machine import FakeMachine
from tests.rpc.conftest import Peer, replies_fit_the_document
from tests.rpc.replies import CODES
from tests.test_daemon import Hall, halls
from xenpvd.config import GuestConfig
from xenpvd.rpc.methods.xenstore import WATCHES_MAX
from xenpvd.vmm import build, machine
from xenpvd.vmm.kvm import System

__all__ = ["halls", "replies_fit_the_document"]


@dataclass
class Scene:
    """``halls[0]`` runs ``definition``'s guest on a machine without KVM; ``peer`` is its admin."""

    halls: list[Hall]
    peer: Peer
    definition: GuestConfig
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    async def sent(self, data: bytes) -> Any:
        self.peer.send(data + b"\n")
        return await self.peer.receive()

    async def started(self, **changes: Any) -> Any:
        """The reply to a start of ``definition`` with ``changes``, by a daemon that has no guest yet."""
        self.halls.append(idle := Hall(self.folder / "idle", None))
        config = self.definition.model_dump(mode="json") | {"disk": []} | changes
        return await (await idle.peer()).call("guest.start", config=config)


Case = Callable[[Scene], Awaitable[Any]]


def asked(method: str, **params: Any) -> Case:
    return lambda scene: scene.peer.call(method, **params)


def sent(message: Any) -> Case:
    return lambda scene: scene.sent(json.dumps(message).encode())


async def by_a_viewer(scene: Scene) -> Any:
    viewer = await Peer.connect(scene.halls[0].socket.with_name("rpc-ro.sock"))
    scene.halls[0].peers.append(viewer)
    return await viewer.call("guest.destroy")


async def by_a_fault_of_ours(scene: Scene) -> Any:
    scene.monkeypatch.setattr(FakeMachine, "ports", None)
    return await scene.peer.call("evtchn.list")


async def with_one_watch_too_many(scene: Scene) -> Any:
    for _ in range(WATCHES_MAX):
        await scene.peer.result("xenstore.watch", path="/none")
        await scene.peer.note("xenstore.changed")
    return await scene.peer.call("xenstore.watch", path="/none")


async def while_another_call_runs(scene: Scene) -> Any:
    scene.peer.request("guest.wait", id_="wait", **{"for": "stopped"})
    return await scene.peer.call("console.attach")


async def of_a_disk_that_is_taken_away_meanwhile(scene: Scene) -> Any:
    image = scene.folder / "b.img"
    image.write_bytes(bytes(512))
    scene.peer.request("drive.add", vdev="xvdb", target=str(image))  # no guest takes it up
    other = await scene.halls[0].peer()
    while len(await other.result("drive.list")) < 2:
        pass
    await other.result("drive.remove", vdev="xvdb", force=True)
    return await scene.peer.receive()


async def without_kvm(scene: Scene) -> Any:
    scene.monkeypatch.setattr("xenpvd.domain.Machine", machine.Machine)
    scene.monkeypatch.setattr(build, "System", partial(System, str(scene.folder / "kvm")))
    return await scene.started()


#: by what it takes to hear it; the reply is looked at below
CASES: dict[str, Case] = {
    "PARSE_ERROR": lambda scene: scene.sent(b"{"),
    "INVALID_REQUEST": sent({"jsonrpc": "2.0", "id": 1}),
    "METHOD_NOT_FOUND": asked("no.such"),
    "VALIDATION": asked("vcpu.set_online", count=0),
    "INTERNAL": by_a_fault_of_ours,
    "FAILED": of_a_disk_that_is_taken_away_meanwhile,
    "GUEST_STATE": asked("guest.start"),
    "NOT_FOUND": asked("drive.remove", vdev="xvdz"),
    "EXISTS": asked("drive.add", vdev="xvda", target="/other.img"),
    "BUSY": while_another_call_runs,
    "TIMEOUT": asked("guest.wait", **{"for": "stopped", "timeout": 0}),
    "LIMIT": with_one_watch_too_many,
    "UNSUPPORTED": asked("memory.set_target", mib=128),
    "PERMISSION": by_a_viewer,
    "IMAGE": asked("drive.add", vdev="xvdb", target="/no/such.img"),
    "HOST_IO": lambda scene: scene.started(console={"log": "/no/such/console.log"}),
    "HOST_KVM": without_kvm,
    "XENSTORE": asked("xenstore.transaction", steps=[{"op": "expect", "path": "/tool", "text": "none"}]),
}


@pytest.mark.parametrize("reason", CODES)
async def test_a_daemon_gives_it(
    reason: str,
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reason in CASES, f"nothing is known to give {reason}: add its case, or take it from the document"
    halls.append(hall := Hall(tmp_path / "run", definition))
    reply = await CASES[reason](Scene(halls, await hall.peer(), definition, tmp_path, monkeypatch))
    told = reply["error"]
    assert (told["code"], told["data"]["reason"]) == (CODES[reason], reason), told


def test_every_case_is_of_a_code() -> None:
    assert CASES.keys() <= CODES.keys()
