"""Each verb: what it asks of the service, and what it answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.errors import TimedOut
from xenpvd.rpc.methods import METHODS, TREE_MAX
from xenpvd.views import Runstate

DISK = {"vdev": "xvdb", "target": "/srv/data.img", "access": "ro"}

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("daemon.info", {}, {"name": "xenpvd", "api": "1.0", "features": ["console"]}),
    ("daemon.ping", {}, {"seq": 0}),
    ("daemon.quit", {}, {"stopping": True}),
    ("guest.status", {}, {"name": "web1", "state": "running", "phase": "devices", "memory_mib": 512}),
    ("guest.config", {}, {"name": "web1", "kernel": "/boot/vmlinuz", "on_crash": "preserve", "disk": []}),
    ("guest.check", {"config": {"kernel": "/k"}}, {"problems": []}),
    ("guest.check", {"config": {"kernel": "/missing"}}, {"problems": [{"loc": "kernel", "msg": "none"}]}),
    ("guest.shutdown", {"mode": "reboot", "timeout": 5}, {"mode": "reboot", "state": "stopped"}),
    ("guest.destroy", {}, {"state": "stopped", "uptime": None}),
    ("guest.wait", {"for": "devices"}, {"state": "running"}),
    ("drive.add", DISK, {"changed": True, "connected_ms": 41.0}),
    ("drive.remove", {"vdev": "xvdz", "missing_ok": True}, {"removed": False}),
    ("console.read", {"since": 2, "max": 3}, {"start": 2, "end": 5, "lost": 0, "text": "llo"}),
    ("console.read", {"stream": "xen", "max": 5}, {"text": "(XEN)"}),
    ("console.write", {"text": "ls\r"}, {"written": 3}),
    ("console.write", {"base64": "/wA="}, {"written": 2}),
    ("xenstore.read", {"path": "/tool/name"}, {"path": "/tool/name", "text": "web1", "base64": None}),
    ("xenstore.read", {"path": "/tool/raw"}, {"text": None, "base64": "/wA="}),
    ("events.subscribe", {}, {"seq": 0, "replayed": 0, "lost": 0}),
    ("events.unsubscribe", {}, {"removed": False}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params", "expected"), ROWS, ids=[f"{row[0]} {list(row[1])}" for row in ROWS]
)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    service.console.print(b"hello\r\n")
    result = await peer.result(method, **params)
    assert {key: result[key] for key in expected} == expected


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


async def test_start_with_and_without_a_definition(peer: Peer, service: FakeService) -> None:
    assert (await peer.fault("guest.start"))["data"] == {
        "reason": "GUEST_STATE",
        "state": "running",
        "allowed": ["defined", "stopped"],
    }
    service.state = Runstate.DEFINED
    assert (await peer.result("guest.start", config={"name": "b", "kernel": "/k2"}))["name"] == "b"
    service.state = Runstate.STOPPED
    await peer.result("guest.start")
    assert service.config.kernel == "/k2"


async def test_check_collects_the_models_findings(peer: Peer) -> None:
    found = await peer.result("guest.check", config={"memory": 1, "disk": [{"vdev": "xvda", "target": ""}]})
    assert {problem["loc"] for problem in found["problems"]} == {"kernel", "memory", "disk.0.target"}


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


async def test_quit_reaches_the_service(peer: Peer, service: FakeService) -> None:
    await peer.result("daemon.quit")
    assert service.quitting.is_set()


async def test_xenstore(peer: Peer, service: FakeService) -> None:
    assert await peer.result("xenstore.list", path="/tool") == ["name", "raw"]
    assert (await peer.result("xenstore.tree"))[2] == {"path": "/tool/name", "value": "web1", "perms": ["n0"]}
    told = await peer.fault("xenstore.read", path="/none")
    assert told["data"] == {"reason": "XENSTORE", "error": "ENOENT", "path": "/none"}
    service.xenstore |= {f"/n{i}": b"" for i in range(TREE_MAX)}
    assert (await peer.fault("xenstore.tree"))["data"]["reason"] == "LIMIT"
    assert len(await peer.result("xenstore.tree", path="/tool")) == 3


async def test_events_replay_then_live(peer: Peer, service: FakeService) -> None:
    for vdev in ("xvda", "xvdb"):
        service.events.publish("drive.added", vdev=vdev)
    service.events.publish("log.record", text="no")
    subscribed = await peer.result("events.subscribe", names=["drive.*"], since=1, epoch=service.events.epoch)
    assert subscribed == {"seq": 3, "epoch": service.events.epoch, "replayed": 1, "lost": 0}
    service.events.publish("drive.removed", vdev="xvdb", raw=b"\xff", odd=object)
    replayed, live = await peer.receive(), await peer.receive()
    assert replayed["method"] == "event"
    assert "id" not in replayed
    assert replayed["params"].pop("time") > 1e9
    assert replayed["params"] == {
        "epoch": service.events.epoch, "seq": 2, "name": "drive.added", "data": {"vdev": "xvdb"}
    }  # fmt: skip
    assert live["params"]["data"]["raw"] == "_w==", "an event of any kind must not end the connection"


async def test_a_second_subscription_replaces_the_first(peer: Peer, service: FakeService) -> None:
    await peer.result("events.subscribe", names=["a"])
    await peer.result("events.subscribe", names=["b"])
    service.events.publish("a")
    service.events.publish("b")
    assert (await peer.receive())["params"]["name"] == "b"
    assert await peer.result("events.unsubscribe") == {"removed": True}
    service.events.publish("b")
    assert (await peer.call("daemon.ping"))["id"] == 1, "nothing comes in between"
    assert not service.events._subscriptions


async def test_history(peer: Peer, service: FakeService) -> None:
    for name in ("a", "b", "a", "a"):
        service.events.publish(name)
    found = await peer.result("events.history", names=["a"], max=2)
    assert [event["seq"] for event in found] == [3, 4]


async def test_discover_lists_every_method(peer: Peer) -> None:
    document = await peer.result("rpc.discover")
    assert [method["name"] for method in document["methods"]] == list(METHODS)


def test_every_method_has_words_and_a_role() -> None:
    for method in METHODS.values():
        assert method.summary.endswith("."), method.name
        assert method.role in ("viewer", "operator", "admin")
        assert asyncio.iscoroutinefunction(method.run)
    assert [name for name, method in METHODS.items() if method.wait] == ["guest.wait", "console.write"]
