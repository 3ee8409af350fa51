"""The daemon's verbs, its API and its events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.rpc.methods import METHODS
from xenpvd.rpc.models import API

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("daemon.info", {}, {"name": "xenpvd", "api": API, "features": ["console"]}),
    ("daemon.ping", {}, {"seq": 0}),
    ("daemon.quit", {"guest": "shutdown"}, {"stopping": True}),
    (
        "daemon.reload",
        {},
        {
            "applied": ["on_crash", "console.log_max"],
            "next_start": ["memory"],
            "next_daemon": ["access.viewer"],
        },
    ),
    ("log.set_level", {"level": "debug"}, {"logger": "", "level": "debug"}),
    ("log.set_level", {"level": "inherit", "logger": "xenpvd.rpc"}, {"level": "inherit"}),
    ("events.subscribe", {}, {"seq": 0, "replayed": 0, "lost": 0}),
    ("events.unsubscribe", {}, {"removed": False}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    service.console.print(b"hello\r\n")
    await peer.answers(method, params, expected)


async def test_quit_reaches_the_service(peer: Peer, service: FakeService) -> None:
    refused = await peer.fault("daemon.quit")
    assert refused["data"] == {"reason": "GUEST_STATE", "state": "running", "allowed": ["stopped"]}
    assert not service.quitting.is_set()
    await peer.result("daemon.quit", guest="destroy")
    assert service.quitting.is_set() and service.done == ["daemon_quit destroy"]
    assert (await peer.fault("daemon.quit", guest="yes"))["code"] == -32602


async def test_the_log(peer: Peer, service: FakeService) -> None:
    oldest, newest = await peer.result("log.tail")
    assert oldest == {
        "seq": 1, "time": 1795792071.25, "level": "info", "logger": "xenpvd.guest", "message": "a life begins"
    }  # fmt: skip
    assert await peer.result("log.tail", max=1, level="error", logger="xenpvd") == [newest]
    assert service.done == ["log_tail 100 debug ", "log_tail 1 error xenpvd"]
    await peer.result("log.set_level", level="warning")
    assert service.levels == {"": "warning"}
    assert (await peer.fault("log.set_level", level="info", logger="no"))["data"] == {
        "reason": "NOT_FOUND", "kind": "logger", "name": "no"
    }  # fmt: skip
    for params in ({"level": "trace"}, {"level": "info", "logger": "x" * 129}, {}):
        assert (await peer.fault("log.set_level", **params))["code"] == -32602
    for params in ({"max": 0}, {"max": 1001}, {"level": "inherit"}):
        assert (await peer.fault("log.tail", **params))["code"] == -32602


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
    waiting = {name for name, method in METHODS.items() if method.wait}
    assert waiting == {
        "guest.wait",
        "guest.sysrq",
        "vcpu.set_online",
        "memory.set_target",
        "console.write",
        "console.wait",
        "job.wait",
        "job.cancel",
    }
