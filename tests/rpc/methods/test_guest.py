"""The guest's lives, vCPUs and memory: what is asked of the service, and what is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.views import Runstate

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("guest.status", {}, {"name": "web1", "state": "running", "phase": "devices", "memory_mib": 512}),
    ("guest.config", {}, {"name": "web1", "kernel": "/boot/vmlinuz", "on_crash": "preserve", "disk": []}),
    ("guest.check", {"config": {"kernel": "/k"}}, {"problems": []}),
    ("guest.check", {"config": {"kernel": "/missing"}}, {"problems": [{"loc": "kernel", "msg": "none"}]}),
    ("guest.stats", {}, {"name": "web1", "state": "running", "boots": 3, "grants_mapped": 1}),
    ("guest.shutdown", {"mode": "reboot", "timeout": 5}, {"mode": "reboot", "state": "stopped"}),
    ("guest.pause", {}, {"state": "paused"}),
    ("guest.resume", {}, {"state": "running"}),
    ("guest.reset", {}, {"state": "running"}),
    ("guest.sysrq", {"key": "h"}, {"key": "h"}),
    ("guest.destroy", {}, {"state": "stopped", "uptime": None}),
    ("guest.wait", {"for": "devices"}, {"state": "running"}),
    ("guest.wait", {"for": "paused"}, {"state": "running"}),
    ("vcpu.set_online", {"count": 1}, {"asked": 1, "online": [0], "confirmed": 0.25}),
    ("vcpu.set_online", {"count": 1, "wait": False}, {"asked": 1, "online": [0], "confirmed": None}),
    ("memory.info", {}, {"ram": 512 << 20, "ballooned": 0, "target": None, "pages": "thp"}),
    ("memory.set_target", {"mib": 128}, {"asked_mib": 128, "reached_mib": 128, "confirmed": 1.5}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    service.console.print(b"hello\r\n")
    await peer.answers(method, params, expected)


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


async def test_start_paused(peer: Peer, service: FakeService) -> None:
    service.state = Runstate.STOPPED
    assert (await peer.result("guest.start", paused=True))["state"] == "paused"
    assert (await peer.result("guest.resume"))["state"] == "running"
    (paused, running) = service.events.history(["guest.state"])
    assert (paused.data["to"], running.data["from"]) == ("paused", "paused")


async def test_vcpus_with_and_without_registers(peer: Peer) -> None:
    assert await peer.result("vcpu.list") == [
        {"id": 0, "online": True, "state": "running", "exits": 1000, "regs": None}
    ]
    (vcpu,) = await peer.result("vcpu.list", regs=True)
    assert vcpu["regs"]["rip"] == 0xFFFF_82D0_4020_0123, "64 bits, exactly"


async def test_memory_regions(peer: Peer) -> None:
    await peer.result("memory.set_target", mib=128)
    info = await peer.result("memory.info")
    assert (info["target"], info["ballooned"]) == (128 << 20, 384 << 20)
    assert info["regions"][1] == {
        "name": "special", "gpa": 0xFEFF8000, "size": 32768, "resident": 4096, "huge": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params", "told"),
    [
        ("vcpu.set_online", {"count": 2}, {"online": [0]}),
        ("memory.set_target", {"mib": 128}, {"reached_mib": 512}),
    ],
)
async def test_a_guest_that_does_not_heed_its_target(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], told: dict[str, Any]
) -> None:
    service.lazy = True
    service.config = service.config.model_copy(update={"vcpus": 2})
    fault = await peer.fault(method, **params, timeout=1)
    assert fault["code"] == 1005
    assert fault["data"] == {"reason": "TIMEOUT", **told}
    assert (await peer.result(method, **params, wait=False))["confirmed"] is None


@pytest.mark.parametrize("method", ["guest.pause", "guest.resume", "guest.reset", "vcpu.list", "memory.info"])
async def test_what_needs_a_life(peer: Peer, service: FakeService, method: str) -> None:
    service.state = Runstate.STOPPED
    assert (await peer.fault(method))["data"]["reason"] == "GUEST_STATE"


@pytest.mark.parametrize(
    ("method", "params", "where", "words"),
    [
        ("guest.start", {"paused": 1}, "paused", "must be true or false"),
        ("guest.pause", {"timeout": 1}, "timeout", "no such key"),
        ("guest.sysrq", {}, "key", "missing"),
        ("guest.sysrq", {"key": "reboot"}, "key", "one letter or digit"),
        ("guest.sysrq", {"key": "h\n"}, "key", "one letter or digit"),
        ("guest.sysrq", {"key": ""}, "key", "one letter or digit"),
        ("guest.sysrq", {"key": "h", "timeout": -1}, "timeout", "must be at least 0"),
        ("vcpu.list", {"regs": "yes"}, "regs", "must be true or false"),
        ("vcpu.set_online", {"count": 0}, "count", "must be at least 1"),
        ("vcpu.set_online", {"count": 33}, "count", "must be at most 32"),
        ("vcpu.set_online", {"count": True}, "count", "must be a whole number"),
        ("memory.set_target", {"mib": 63}, "mib", "must be at least 64"),
        ("memory.set_target", {"mib": 2**20 + 1}, "mib", "must be at most 1048576"),
        ("memory.set_target", {"mib": 128.5}, "mib", "must be a whole number"),
    ],
)
async def test_refused_before_anything_happens(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], where: str, words: str
) -> None:
    for verb in (method.replace(".", "_"), method.replace(".", "_") + "_info"):
        service.faults[verb] = AssertionError("the service was asked")
    fault = await peer.fault(method, **params)
    assert fault["code"] == -32602
    (error,) = fault["data"]["errors"]
    assert error["loc"] == where
    assert words in error["msg"]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("guest.sysrq", {"key": "h"}),
        ("vcpu.set_online", {"count": 1}),
        ("memory.set_target", {"mib": 128}),
    ],
)
async def test_a_wait_is_given_up_when_its_client_leaves(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any]
) -> None:
    gate = service.hold(method.replace(".", "_"))
    peer.request(method, **params)
    await gate.entered.wait()
    await peer.close()
    await asyncio.wait_for(gate.left.wait(), 5)
    assert service.done == [] and service.target is None


async def test_check_collects_the_models_findings(peer: Peer) -> None:
    found = await peer.result("guest.check", config={"memory": 1, "disk": [{"vdev": "xvda", "target": ""}]})
    assert {problem["loc"] for problem in found["problems"]} == {"kernel", "memory", "disk.0.target"}
