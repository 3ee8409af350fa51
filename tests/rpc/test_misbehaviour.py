"""Clients of rpc.sock that do what they should not; the other files here have the rest of the cases."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.fakes.machine import FakeMachine
from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer, until
from tests.test_daemon import Hall
from xenpvd.backends import device
from xenpvd.config import GuestConfig
from xenpvd.rpc.framing import parse
from xenpvd.rpc.methods import METHODS
from xenpvd.rpc.server import RpcServer
from xenpvd.rpc.session import CONNECTIONS_MAX
from xenpvd.tasks import Tasks

PING = b'{"jsonrpc":"2.0","method":"daemon.ping","id":1}\n'

# ---- what is no JSON

#: A row or more for each kind of file in JSONTestSuite; parse() agrees with all 318 of them but for repeated
#: keys, which the suite allows and we refuse.
JSON = [
    b"[]",
    b" [] ",
    b'[null, 1, "1", {}]',
    b"[-0]",
    b"[-0.0e-0]",
    b"[1E+2]",
    b"[0.4e006]",
    b"[123e45]",
    b'["\\u0060\\u012a\\u12AB"]',
    b'["\\"\\\\\\/\\b\\f\\n\\r\\t"]',
    b'["\\uD801\\udc37"]',
    b'["\\u0000"]',
    b'["\xe2\x80\xa8\x7f"]',
    '["\U0010ffff"]'.encode(),
    b'{"":0}',
    b'{"a\\u0000b":{"b":[]}}',
    b"42",
    b"-0.1",
    b'""',
    b"true",
    b"\t\n\r [1]\n",
]
NO_JSON = [
    b"[1 true]",
    b"[a\xe5]",
    b'["": 1]',
    b"[1],",
    b"[,1]",
    b"[1,,2]",
    b"[1,]",
    b"[",
    b"[1,\n1\n,1",
    b"[fals]",
    b"[++1]",
    b"[+1]",
    b"[-01]",
    b"[-]",
    b"[-2.]",
    b"[.1]",
    b"[0.e1]",
    b"[0E+]",
    b"[1eE2]",
    b"[1 000.0]",
    b"[0x42]",
    b"[012]",
    b"[1.]",
    b"[- 1]",
    b"[1a]",
    b"[Inf]",
    b"[nan]",
    b"[\xef\xbc\x91]",
    b'{[: "x"}',
    b'{"x", null}',
    b'{"x"::"b"}',
    b"{1:1}",
    b"{'a':0}",
    b'{"a" b}',
    b'{"id":0,}',
    b"{a: 1}",
    b'{"a":0}/**/',
    b'{"a":0}#',
    b'{"a"',
    b'{"a":"b"}#{}',
    b'["\\u00A"]',
    b'["\\uD800\\u1x"]',
    b'["\\x00"]',
    b'["\\\xe5"]',
    b'["\\u\xe5"]',
    b'["\x00"]',
    b'["a\nb"]',
    b'["\t"]',
    b"abc",
    b'["asd]',
    b"\\u0020",
    b"<.>",
    b"[<null>]",
    b"[1]x",
    b"[True]",
    b"1]",
    b"{}}",
    b"*",
    b"2@",
    b"[\\n]",
    b"\x0c[]",
    b"\xe2\x81\xa0",
    b"\x00",
    b"{}\x00",
    b"\xef\xbb\xbf[]",
    "[]".encode("utf-16"),
    "[]".encode("utf-16-be"),
    b'["\\uDADA"]',
    b'["\\uDd1e\\uD834"]',
    b'["\xed\xa0\x80"]',
    b'["\xc0\xaf"]',
    b'["\xf4\xbf\xbf\xbf"]',
    b'["\xe9"]',
    b"[1e9999]",
    b"[-1e9999]",
    b"NaN",
    b"[" * 500 + b"]" * 500,
    b'{"a":' * 100_000,
    b"[" + b"1" * 100_000 + b"]",
]


@pytest.mark.parametrize("data", JSON, ids=repr)
async def test_what_is_json(data: bytes) -> None:
    """N1: the files that must be parsed."""
    assert parse(data) == json.loads(data)


@pytest.mark.parametrize("data", NO_JSON, ids=lambda data: repr(data[:20]))
def test_what_is_no_json(data: bytes) -> None:
    """N1, N2, N3, N6, N7: the files that must not be parsed, and those that we do not either."""
    with pytest.raises(ValueError):
        parse(data)


async def test_nothing_of_it_harms_what_follows(peer: Peer) -> None:
    """N1: over the socket, where some of it is several messages."""
    for data in NO_JSON:
        peer.send(data.replace(b"\n", b" ") + b"\n")
    peer.request("daemon.ping", id_="next")
    replies: list[Any] = []
    while not replies or replies[-1]["id"] != "next":
        reply = await peer.receive()
        replies += reply if isinstance(reply, list) else [reply]
    assert len(replies) > len(NO_JSON) - 5
    assert {one["error"]["code"] for one in replies[:-1]} == {-32700, -32600}


# ---- what is no request


@pytest.mark.parametrize("count", [65, 10_000])
async def test_a_batch_that_is_too_long(peer: Peer, service: FakeService, count: int) -> None:
    """N8: none of it is done; tests/rpc/test_dispatch.py has the table of JSON-RPC 2.0."""
    add = {"jsonrpc": "2.0", "method": "drive.add", "params": {"vdev": "xvdb", "target": "/b"}, "id": 1}
    peer.send(
        json.dumps([add] + [{"jsonrpc": "2.0", "method": "daemon.ping"}] * (count - 1)).encode() + b"\n"
    )
    assert (await peer.receive())["error"]["data"]["reason"] == "LIMIT"
    assert not service.drives and not service.done


#: What no parameter can be: each is tried in the place of each
NONSENSE = [
    None,
    True,
    -1,
    2**70,
    1.5,
    1e308,
    "",
    "\0",
    "x" * 100_000,
    "../../etc/shadow",
    "x\x1b[2J\n",
    [],
    [[]],
    {},
    {"x": 1},
]


def good(model: type[BaseModel]) -> dict[str, Any]:
    """Parameters that pass ``model``."""
    some = {
        "config": {"kernel": "/k"},
        "for": "stopped",
        "key": "s",
        "count": 1,
        "mib": 128,
        "port": 1,
        "viewer": 1,
        "vdev": "xvdb",
        "target": "/b",
        "name": "agent",
        "text": "x",
        "regex": "x",
        "path": "/tool/name",
        "watch": 1,
        "limit": 1,
        "level": "info",
        "job": 1,
        "steps": [{"op": "read", "path": "/tool/name"}],
    }
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    wanted = {name for name, field in fields.items() if field.is_required()} | (
        fields.keys() & {"text", "target"}
    )
    return {name: some[name] for name in wanted}


@pytest.mark.parametrize("name", METHODS)
async def test_every_parameter_of_every_method(peer: Peer, service: FakeService, name: str) -> None:
    """N10: what a model does not take is refused, by its place, before anything happens."""
    model = METHODS[name].params
    params = good(model)
    model.model_validate(params)
    wrong: list[tuple[str, dict[str, Any]]] = [("x" * 1000, {**params, "x" * 1000: 1})]
    for key in params:
        wrong.append((key, {other: value for other, value in params.items() if other != key}))
    for field, info in model.model_fields.items():
        key = info.alias or field
        tries = [(key, {**params, key: value}) for value in NONSENSE]
        refused = [one for one in tries if not _passes(model, one[1])]
        assert len(refused) >= 5, key
        wrong += refused
    before = service.events.seq
    for key, bad in wrong:
        if _passes(model, bad):
            continue  # it was no must
        told = await peer.fault(name, **bad)
        assert (told["code"], told["data"]["reason"]) == (-32602, "VALIDATION"), (key, bad)
        assert len(json.dumps(told)) < 10_000
    assert not service.done and service.events.seq == before


def _passes(model: type[BaseModel], params: dict[str, Any]) -> bool:
    try:
        model.model_validate(params)
    except ValueError:
        return False
    return True


# ---- many, slow, and in a hurry


async def test_hundreds_of_slow_clients(server: RpcServer, path: Path, peer: Peer) -> None:
    """N11, N12: as many as may are amid a request, hundreds are sent away, and one is served as ever."""
    slow = [await Peer.connect(path) for _ in range(CONNECTIONS_MAX - 1)]
    for one in slow:
        one.send(PING[:10])
    for _ in range(500):
        refused = await Peer.connect(path, greet=False)
        assert (await refused.receive())["error"]["data"]["reason"] == "LIMIT"
        await refused.close()
    for at in range(10, len(PING)):
        for one in slow:
            one.send(PING[at : at + 1])
        assert (await peer.call("daemon.ping"))["id"] == 1
    for one in slow:
        assert (await one.receive())["id"] == 1
        await one.close()


async def test_a_flood_of_one_is_no_other_ones_wait(server: RpcServer, path: Path, peer: Peer) -> None:
    """N13: who asks once is answered while the flood goes on, in a small part of its time."""
    flooder, tasks, answered = await Peer.connect(path), Tasks(), 0

    async def flood() -> None:
        while True:
            flooder.send(PING * 100)
            await flooder.writer.drain()

    async def read() -> None:
        nonlocal answered
        while data := await flooder.reader.read(1 << 16):
            answered += data.count(b"\n")

    tasks.spawn(flood(), "flood")
    tasks.spawn(read(), "read")
    await until(lambda: answered > 100)
    between = []
    for _ in range(20):
        before = answered
        assert (await peer.call("daemon.ping"))["id"] == 1
        between.append(answered - before)
    assert max(between) < 1000 and sum(between) > 0
    await tasks.cancel()
    flooder.writer.transport.abort()  # who does not read its answers cannot send all that it has to


# ---- the whole daemon: who leaves, and who is in each other's way


@pytest.fixture
async def hall(tmp_path: Path, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0.01)  # there is no guest that takes note of anything
    hall = Hall(tmp_path / "run", None, 0.01)
    yield hall
    hall.daemon.quit("shutdown")
    await hall.ended
    for peer in hall.peers:
        await peer.close()


async def test_who_starts_a_guest_and_leaves(
    hall: Hall, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    """N15: it is started; test_connection.py has drive.add, test_console.py the attaching."""
    watcher, leaver = await hall.peer(), await hall.peer()
    await watcher.result("events.subscribe", names=["guest.state"])
    leaver.request("guest.start", config=definition.model_dump(mode="json"))
    states = [(await watcher.note("event"))["data"]["to"]]
    leaver.writer.transport.abort()
    while "running" not in states:
        states.append((await watcher.note("event"))["data"]["to"])
    assert states == ["starting", "running"] and len(machines) == 1


ROUNDS = 60
#: Of a guest that is started and destroyed
NEXT = {
    "defined": ["starting"],
    "starting": ["running", "stopping", "stopped", "defined"],
    "running": ["stopping"],
    "stopping": ["stopped"],
    "stopped": ["starting"],
}


async def test_two_who_want_the_opposite(
    hall: Hall, definition: GuestConfig, machines: list[FakeMachine], tmp_path: Path
) -> None:
    """N16: each call has one answer, each change of state is a legal one, and the end is as told."""
    await hall.peer()
    (tmp_path / "b.img").write_bytes(bytes(512))
    config = definition.model_dump(mode="json")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("guest.start", {"config": config}),
        ("guest.destroy", {}),
        ("drive.add", {"vdev": "xvdb", "target": str(tmp_path / "b.img"), "wait": False}),
        ("drive.remove", {"vdev": "xvdb", "force": True}),
    ]
    answers: Counter[tuple[str, str]] = Counter()

    async def insist(choice: random.Random) -> None:
        hall.peers.append(peer := await Peer.connect(hall.socket))
        for _ in range(ROUNDS):
            method, params = choice.choice(calls)
            reply = await peer.call(method, **params)
            answers[method, "done" if "result" in reply else reply["error"]["data"]["reason"]] += 1

    async with asyncio.TaskGroup() as both:
        for seed in (1, 2):
            both.create_task(insist(random.Random(seed)))
    assert answers.total() == 2 * ROUNDS
    assert {reason for _, reason in answers} <= {"done", "GUEST_STATE", "EXISTS", "NOT_FOUND", "BUSY"}, (
        answers
    )
    state = "defined"
    for event in hall.daemon.events.history(["guest.state"]):
        assert event.data["from"] == state and event.data["to"] in NEXT[state], event
        state = event.data["to"]
    assert (await hall.peers[0].result("guest.status"))["state"] == state
    await hall.peers[0].call("guest.destroy")
    for method, params in (calls[0], calls[2], calls[3], calls[1]):  # and in good order each is done
        await hall.peers[0].result(method, **params)
    assert all(machine.closed for machine in machines[:-1])
