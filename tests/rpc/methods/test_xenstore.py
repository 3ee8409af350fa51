"""The guest's store over RPC; the fake service has a real one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer, until
from xenpvd.rpc.methods.xenstore import TREE_MAX, WATCHES_MAX

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("xenstore.read", {"path": "/tool/name"}, {"path": "/tool/name", "text": "web1", "base64": None}),
    ("xenstore.read", {"path": "/tool/raw"}, {"text": None, "base64": "/wA="}),
    (
        "xenstore.write",
        {"path": "/tool/new", "base64": "AP8="},
        {"path": "/tool/new", "text": None, "base64": "AP8="},
    ),
]


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(peer: Peer, method: str, params: dict[str, Any], expected: dict[str, Any]) -> None:
    await peer.answers(method, params, expected)


async def test_list_tree_and_remove(peer: Peer, service: FakeService) -> None:
    assert await peer.result("xenstore.list", path="/tool") == ["name", "raw"]
    assert (await peer.result("xenstore.tree"))[2] == {
        "path": "/tool/name",
        "value": "web1",
        "perms": ["n0"],
        "base64": None,
    }
    told = await peer.fault("xenstore.read", path="/none")
    assert told["data"] == {"reason": "XENSTORE", "error": "ENOENT", "path": "/none"}
    assert await peer.result("xenstore.remove", path="/tool/raw") is None
    assert await peer.result("xenstore.list", path="/tool") == ["name"]
    for i in range(TREE_MAX):
        service.xenstore.write(f"/many/{i}", "")
    assert (await peer.fault("xenstore.tree"))["data"]["reason"] == "LIMIT"
    assert len(await peer.result("xenstore.tree", path="/tool")) == 2


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("xenstore.read", {"path": "relative"}),
        ("xenstore.read", {"path": "/a\0b"}),
        ("xenstore.write", {"path": "/tool/x", "text": "1", "base64": "AP8="}),
        ("xenstore.write", {"path": "/tool/x"}),
        ("xenstore.write", {"path": "/tool/x", "base64": "no"}),
        ("xenstore.transaction", {"steps": []}),
        ("xenstore.transaction", {"steps": [{"op": "hats", "path": "/tool"}]}),
        ("xenstore.transaction", {"steps": [{"op": "write", "path": "/tool"}]}),
        ("xenstore.transaction", {"steps": [{"op": "read", "path": "/tool", "text": "x"}]}),
        ("xenstore.transaction", {"steps": [{"op": "expect", "path": "/tool"}]}),
        ("xenstore.transaction", {"steps": [{"op": "expect", "path": "/tool", "text": "", "absent": True}]}),
        ("xenstore.transaction", {"steps": [{"op": "expect", "path": "/tool", "absent": False}]}),
        ("xenstore.transaction", {"steps": [{"op": "set_perms", "path": "/tool", "perms": ["x1"]}]}),
        ("xenstore.transaction", {"steps": [{"op": "mkdir", "path": "/tool"}] * 257}),
        ("xenstore.history", {"max": 0}),
        ("xenstore.set_quota", {"name": "nodes", "limit": -1}),
        ("xenstore.unwatch", {"watch": 0}),
    ],
)
async def test_refused_before_anything_happens(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any]
) -> None:
    before = next(iter(service.xenstore_history())).seq
    assert (await peer.fault(method, **params))["code"] == -32602
    assert next(iter(service.xenstore_history())).seq == before


async def test_a_transaction_does_all(peer: Peer, service: FakeService) -> None:
    answers = await peer.result(
        "xenstore.transaction",
        steps=[
            {"op": "expect", "path": "/tool/name", "text": "web1"},
            {"op": "expect", "path": "/tool/raw", "base64": "/wA="},
            {"op": "expect", "path": "/tool/new/deep", "absent": True},
            {"op": "write", "path": "/tool/new/deep", "text": "1"},
            {"op": "mkdir", "path": "/tool/dir"},
            {"op": "set_perms", "path": "/tool/dir", "perms": ["n1", "r0"]},
            {"op": "get_perms", "path": "/tool/dir"},
            {"op": "remove", "path": "/tool/raw"},
            {"op": "list", "path": "/tool"},
            {"op": "read", "path": "/tool/new/deep"},
        ],
    )
    assert [answer["names"] for answer in answers[-4:]] == [["n1", "r0"], None, ["name", "new", "dir"], None]
    assert answers[-1] == {"path": "/tool/new/deep", "text": "1", "base64": None, "names": None}
    assert service.xenstore.directory("/tool") == ["name", "new", "dir"]
    assert service.xenstore.get_perms("/tool/dir") == ["n1", "r0"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ({"op": "expect", "path": "/tool/name", "text": "web2"}, "EAGAIN"),
        ({"op": "expect", "path": "/tool/name", "absent": True}, "EAGAIN"),
        ({"op": "expect", "path": "/tool/none", "text": ""}, "EAGAIN"),
        ({"op": "expect", "path": "/tool//name", "text": ""}, "EINVAL"),
        ({"op": "read", "path": "/tool/none"}, "ENOENT"),
        ({"op": "remove", "path": "/no/such"}, "ENOENT"),
    ],
)
async def test_or_nothing(peer: Peer, service: FakeService, step: dict[str, Any], error: str) -> None:
    first = {"op": "write", "path": "/tool/new", "text": "1"}
    told = await peer.fault("xenstore.transaction", steps=[first, step, first])
    assert told["data"] == {"reason": "XENSTORE", "error": error, "path": step["path"], "step": 1}
    assert service.xenstore.directory("/tool") == ["name", "raw"]
    quotas = {row.name: row.used for row in service.store.quotas(0)}
    assert quotas["transactions"] == 0


async def test_a_watch_tells_of_changes_until_it_is_ended(peer: Peer, service: FakeService) -> None:
    watch = (await peer.result("xenstore.watch", path="/tool"))["watch"]
    assert await peer.note("xenstore.changed") == {"watch": watch, "path": "/tool"}
    service.xenstore.write("/other", "")
    service.xenstore.write("/tool/name", "web2")
    assert await peer.note("xenstore.changed") == {"watch": watch, "path": "/tool/name"}
    other = (await peer.result("xenstore.watch", path="/other"))["watch"]
    assert await peer.note("xenstore.changed") == {"watch": other, "path": "/other"}
    assert await peer.result("xenstore.unwatch", watch=watch) is None
    assert (await peer.fault("xenstore.unwatch", watch=watch))["data"]["reason"] == "NOT_FOUND"
    service.xenstore.write("/tool/name", "web3")
    service.xenstore.write("/other", "x")
    assert await peer.note("xenstore.changed") == {"watch": other, "path": "/other"}


async def test_watches_are_bounded_and_end_with_their_connection(peer: Peer, service: FakeService) -> None:
    for _ in range(WATCHES_MAX):
        await peer.result("xenstore.watch", path="/tool")
        await peer.note("xenstore.changed")
    assert (await peer.fault("xenstore.watch", path="/tool"))["data"] == {
        "reason": "LIMIT",
        "limit": WATCHES_MAX,
    }
    assert {row.name: row.used for row in service.store.quotas(0)}["watches"] == WATCHES_MAX
    await peer.close()
    await until(lambda: service.store.quotas(0)[1].used == 0)
    assert {row.name: row.used for row in service.store.quotas(0)}["watches"] == 0


async def test_who_has_asked_what(peer: Peer, service: FakeService) -> None:
    service.store.client.write("/tool/name", "web2")
    await peer.result("xenstore.read", path="/tool/name")
    await peer.fault("xenstore.read", path="/none")
    told = await peer.result("xenstore.history", max=3)
    assert [(o["who"], o["op"], o["arguments"], o["result"]) for o in told] == [
        ("xenpvd", "WRITE", ["/tool/name", "web2"], "OK"),
        ("rpc", "READ", ["/tool/name"], "OK"),
        ("rpc", "READ", ["/none"], "ENOENT"),
    ]
    assert [o["seq"] for o in await peer.result("xenstore.history", match="tool/na", max=2)] == [
        told[0]["seq"],
        told[1]["seq"],
    ]
    assert await peer.result("xenstore.history", domid=7) == []


async def test_quotas(peer: Peer, service: FakeService) -> None:
    service.store.client.write("/theirs", "")
    service.store.client.set_perms("/theirs", ["n1"])
    assert await peer.result("xenstore.set_quota", name="nodes", limit=7) is None
    rows = {row["name"]: row for row in await peer.result("xenstore.quotas")}
    assert rows["nodes"] == {"name": "nodes", "limit": 7, "used": 1}
    assert rows["memory"]["used"] > 0
    assert rows["node-size"]["used"] is None
    told = await peer.fault("xenstore.set_quota", name="hats", limit=1)
    assert told["data"] == {"reason": "NOT_FOUND", "kind": "quota", "name": "hats"}
    assert "watch-event-timeout" in told["message"]
