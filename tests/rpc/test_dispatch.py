"""JSON-RPC 2.0 to the letter: its examples, and what they leave out, over the real socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.rpc.dispatch import dispatch
from xenpvd.rpc.registry import Call, Client

PING = {"jsonrpc": "2.0", "method": "daemon.ping"}
XS = {"jsonrpc": "2.0", "method": "xenstore.list"}


def error(code: int, id_: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": code, "id": id_}


def result(value: Any, id_: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "result": value, "id": id_}


def bare(reply: Any) -> Any:
    """The reply with error objects cut down to their code."""
    if isinstance(reply, list):
        return [bare(one) for one in reply]
    if "error" in reply:
        assert isinstance(reply["error"]["message"], str)
        assert isinstance(reply["error"]["data"]["reason"], str)
        return {**reply, "error": reply["error"]["code"]}
    return reply


LIST = {**XS, "params": {"path": "/tool"}}
NAMES = ["name", "raw"]

#: The examples of https://www.jsonrpc.org/specification#examples with our methods in them, then our own.
ROWS: list[tuple[str, str | list[Any] | dict[str, Any], Any]] = [
    ("named parameters", {**LIST, "id": 3}, result(NAMES, 3)),
    ("positional parameters are refused", {**XS, "params": ["/tool"], "id": 1}, error(-32602, 1)),
    ("an empty positional list is none", {**PING, "params": [], "id": 1}, "pong"),
    ("a notification", PING, None),
    ("a notification of no method", {"jsonrpc": "2.0", "method": "foobar"}, None),
    ("a notification with bad parameters", {**XS, "params": {"path": 1}}, None),
    ("no such method", {"jsonrpc": "2.0", "method": "foobar", "id": "1"}, error(-32601, "1")),
    ("invalid JSON", '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', error(-32700)),
    ("invalid request", {"jsonrpc": "2.0", "method": 1, "params": "bar"}, error(-32600)),
    ("batch, invalid JSON", '[{"jsonrpc": "2.0", "id": 1},{"jsonrpc": "2.0", "method"]', error(-32700)),
    ("empty batch", [], error(-32600)),
    ("invalid batch of one", [1], [error(-32600)]),
    ("invalid batch", [1, 2, 3], [error(-32600)] * 3),
    (
        "mixed batch",
        [{**LIST, "id": "1"}, PING, {"foo": 1}, {**XS, "method": "foo.get", "id": "5"}, {**LIST, "id": "9"}],
        [result(NAMES, "1"), error(-32600), error(-32601, "5"), result(NAMES, "9")],
    ),
    ("batch of notifications", [PING, PING], None),
    ("an invalid request keeps its id", {**PING, "jsonrpc": "1.0", "id": 7}, error(-32600, 7)),
    ("params of another type", {**PING, "params": 1, "id": 7}, error(-32600, 7)),
    ("params null", {**PING, "params": None, "id": 7}, error(-32600, 7)),
    ("id true", {**LIST, "id": True}, error(-32600)),
    ("id object", {**LIST, "id": {}}, error(-32600)),
    ("id null is a request", {**LIST, "id": None}, result(NAMES, None)),
    ("id empty", {**LIST, "id": ""}, result(NAMES, "")),
    ("id fraction", {**LIST, "id": 1.5}, result(NAMES, 1.5)),
    ("id beyond 64 bits", {**LIST, "id": 2**70}, result(NAMES, 2**70)),
    ("method of the language", {**PING, "method": "__class__", "id": 1}, error(-32601, 1)),
    ("method of a million letters", {**PING, "method": "x" * 1_000_000, "id": 1}, error(-32601, 1)),
    ("unknown parameter", {**LIST, "params": {"path": "/", "x": 1}, "id": 1}, error(-32602, 1)),
    ("parameter called call", {**LIST, "params": {"call": 1}, "id": 1}, error(-32602, 1)),
    ("parameter called self", {**LIST, "params": {"self": 1, "": 2}, "id": 1}, error(-32602, 1)),
    ("missing parameter", {**XS, "id": 1}, error(-32602, 1)),
    ("parameter of another type", {**XS, "params": {"path": ["/"]}, "id": 1}, error(-32602, 1)),
    ("a scalar", "1", error(-32600)),
    ("a string", '"daemon.ping"', error(-32600)),
    ("null", "null", error(-32600)),
    ("repeated key", '{"jsonrpc":"2.0","method":"daemon.ping","id":1,"id":2}', error(-32700)),
    ("batch too long", [PING] * 65, error(1006)),
    ("batch as long as may be", [{**LIST, "id": 1}] * 64, [result(NAMES, 1)] * 64),
    ("a batch in a batch", [[{**LIST, "id": 1}]], [error(-32600)]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
async def test_spec(peer: Peer, service: FakeService, message: Any, expected: Any) -> None:
    """N8, N9."""
    peer.send((message if isinstance(message, str) else json.dumps(message)).encode() + b"\n")
    peer.request("daemon.ping", id_="after")
    if expected is None:
        assert (await peer.receive())["id"] == "after", "a notification is silent"
        return
    replies = [await peer.receive(), await peer.receive()]
    pong = result({"epoch": service.events.epoch, "seq": 0}, 1)
    wanted = [pong if expected == "pong" else expected, {**pong, "id": "after"}]
    assert sorted(map(str, map(bare, replies))) == sorted(map(str, wanted))


async def test_batch_runs_in_order(peer: Peer, service: FakeService) -> None:
    gate = service.hold("drive_add")
    add = {"jsonrpc": "2.0", "method": "drive.add", "params": {"vdev": "xvdb", "target": "/b"}, "id": 1}
    peer.send(json.dumps([add, {"jsonrpc": "2.0", "method": "drive.list", "id": 2}]).encode())
    await gate.entered.wait()
    assert (await peer.call("daemon.ping"))["id"] == 1, "other messages go on meanwhile"
    gate.open.set()
    added, listed = await peer.receive()
    assert added["result"]["changed"] is True
    assert [drive["vdev"] for drive in listed["result"]] == ["xvdb"]


@pytest.mark.parametrize("element", [1, {**PING, "id": 1}, {**PING, "method": "none", "id": 1}])
async def test_others_have_their_turn_between_the_elements_of_a_batch(
    service: FakeService, element: Any
) -> None:
    """N13."""
    turns, running = 0, True

    async def other() -> None:
        nonlocal turns
        while running:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        client = cast(Client, None)  # nothing here asks for it
        replies = await dispatch([element] * 64, Call(service, client, asyncio.current_task(), alone=False))
        running = False
    assert replies is not None
    assert len(replies) == 64
    assert turns >= 64


async def test_a_result_that_is_no_json_is_our_fault(
    peer: Peer, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service.daemon_info = lambda: object()  # type: ignore[method-assign,assignment,return-value]
    assert (await peer.fault("daemon.info"))["code"] == -32603
    assert (await peer.call("daemon.ping"))["id"] == 1
    assert "incident" in caplog.text
