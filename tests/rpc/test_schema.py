"""The OpenRPC document is whole, and what is kept in schemas/ is what the code says."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from tests.fakes.service import FakeService
from tests.rpc import replies
from tests.rpc.conftest import Peer
from tests.rpc.replies import DOCUMENT
from xenpvd.jobs import Work
from xenpvd.rpc import __main__
from xenpvd.rpc.http import HttpServer
from xenpvd.rpc.methods import METHODS

SCHEMAS = Path(__file__).parents[2] / "schemas"
OPENRPC = Path(__file__).parent / "openrpc"


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [ref for child in value.values() for ref in references(child)]
    return [ref for child in value for ref in references(child)] if isinstance(value, list) else []


def resolve(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


@pytest.mark.parametrize(("name", "option"), [("openrpc.json", []), ("rpc.md", ["--markdown"])])
def test_no_drift(
    name: str, option: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rpc", *option])
    __main__.main()
    generated = capsys.readouterr().out
    command = " ".join(["python -m xenpvd.rpc", *option, f"> schemas/{name}"])
    assert (SCHEMAS / name).read_text() == generated, f"run: {command}"


def test_references_lead_somewhere_and_all_shapes_are_used() -> None:
    found = set(references(DOCUMENT))
    for reference in found:
        assert isinstance(resolve(reference), dict)
    for kind in ("schemas", "errors"):
        assert {f"#/components/{kind}/{name}" for name in DOCUMENT["components"][kind]} <= found


def schemas() -> Iterator[Any]:
    """Every schema in the document, and the schemas in them."""

    def inner(schema: Any) -> Iterator[Any]:
        yield schema
        if isinstance(schema, dict):
            for key in ("properties", "patternProperties"):
                for each in schema.get(key, {}).values():
                    yield from inner(each)
            for key in ("allOf", "anyOf", "oneOf"):
                for each in schema.get(key, ()):
                    yield from inner(each)
            for key in ("items", "additionalProperties"):
                yield from inner(schema.get(key, True))

    for method in DOCUMENT["methods"]:
        for descriptor in [*method["params"], method["result"]]:
            yield from inner(descriptor["schema"])
    for each in [
        *DOCUMENT["components"]["schemas"].values(),
        *(n["params"] for n in DOCUMENT["x-notifications"]),
    ]:
        yield from inner(each)


def test_every_schema_is_one_of_draft_7() -> None:
    """Which ignores a word that it does not know, as prefixItems of a later draft, and all beside a $ref."""
    words = {*Draft7Validator.META_SCHEMA["properties"], "discriminator"}  # the latter only helps to choose
    for each in schemas():
        Draft7Validator.check_schema(each)
        if isinstance(each, dict):
            assert each.keys() <= words
            assert "$ref" not in each or len(each) == 1, each


def faults(document: Any) -> list[str]:
    """What OpenRPC's own schema has to say of it."""
    metaschema, json_schema = (
        json.loads((OPENRPC / name).read_text()) for name in ("openrpc.json", "json-schema.json")
    )
    known = Resource(json_schema, DRAFT7)
    places = [(json_schema["$id"].rstrip("/"), known), (json_schema["$id"], known)]
    found = Draft7Validator(metaschema, registry=Registry().with_resources(places)).iter_errors(document)
    return [fault.json_path for fault in found]


def test_the_document_is_valid_openrpc() -> None:
    assert faults(json.loads((SCHEMAS / "openrpc.json").read_text())) == []


def test_the_metaschema_sees_what_is_wrong() -> None:
    mistakes: list[tuple[str, tuple[Any, ...], Any]] = [
        ("$.openrpc", ("openrpc",), "0.9"),
        ("$", ("errors",), []),
        ("$.methods[0]", ("methods", 0, "paramStructure"), "by-luck"),
        ("$.methods[1].result", ("methods", 1, "result", "schema"), {"type": "int"}),
        ("$.components.schemas.VcpuInfo", ("components", "schemas", "VcpuInfo", "required"), "id"),
        ("$.components.errors.BUSY.code", ("components", "errors", "BUSY", "code"), "1004"),
    ]
    for where, (*path, key), value in mistakes:
        wrong = copy.deepcopy(DOCUMENT)
        reduce(getitem, path, wrong)[key] = value
        assert [fault for fault in faults(wrong) if where.startswith(fault)], where


def test_openrpc_rules() -> None:
    """Those that its schema does not tell."""
    names = [method["name"] for method in DOCUMENT["methods"]]
    assert len(set(names)) == len(names)
    codes = [error["code"] for error in DOCUMENT["components"]["errors"].values()]
    assert len(set(codes)) == len(codes)
    for method in DOCUMENT["methods"]:
        assert set(method) >= {"name", "summary", "params", "result", "errors", "paramStructure", "x-role"}
        assert len({param["name"] for param in method["params"]}) == len(method["params"])
        required = [param["required"] for param in method["params"]]
        assert required == sorted(required, reverse=True), f"{method['name']}: required ones come first"


def work() -> Work:
    yield 1
    return {"file": "/a"}


Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]


@pytest.fixture(params=["rpc.sock", "POST", "WebSocket"])
async def ask(request: Any, peer: Peer, service: FakeService, tmp_path: Path) -> AsyncIterator[Ask]:
    """Gives the whole reply; each door in turn. By POST nothing can go on after it."""

    def message(method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}

    async def by_post(method: str, params: dict[str, Any]) -> Any:
        async with web.post("/rpc", json=message(method, params)) as reply:
            return await reply.json()

    async def by_websocket(method: str, params: dict[str, Any]) -> Any:
        await ws.send_json(message(method, params))
        return await ws.receive_json(timeout=5)

    if request.param == "rpc.sock":
        yield lambda method, params: peer.call(method, **params)
        return
    door = HttpServer(service, tmp_path / "http.sock")
    await door.start()
    connector = aiohttp.UnixConnector(str(tmp_path / "http.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as web:
        if request.param == "POST":
            yield by_post
        else:
            async with web.ws_connect("/rpc", max_msg_size=0) as ws:
                assert (await ws.receive_json(timeout=5))["method"] == "daemon.hello"
                yield by_websocket
    await door.stop()


async def test_answers_fit_their_schemas(ask: Ask, service: FakeService) -> None:
    """Of every method at every door."""
    service.jobs.start("guest.dump", work(), 1, "bytes")
    asked: dict[str, dict[str, Any]] = {
        "job.list": {},
        "job.get": {"job": 1},
        "job.wait": {"job": 1},
        "job.cancel": {"job": 1},
        "rpc.discover": {},
        "daemon.info": {},
        "daemon.ping": {},
        "log.set_level": {"level": "debug", "logger": "xenpvd.rpc"},
        "log.tail": {},
        "daemon.reload": {},
        "guest.status": {},
        "guest.config": {},
        "guest.stats": {},
        "guest.check": {"config": {}},
        "guest.wait": {"for": "devices"},
        "guest.dump": {"file": "/srv/a.tar.gz", "memory": True},
        "guest.sysrq": {"key": "h"},
        "guest.pause": {},
        "guest.resume": {},
        "guest.reset": {},
        "vcpu.list": {"regs": True},
        "vcpu.set_online": {"count": 1},
        "memory.info": {},
        "memory.set_target": {"mib": 128},
        "evtchn.list": {},
        "evtchn.inject": {"port": 1},
        "grant.list": {},
        "hypercall.stats": {"recent": 256},
        "drive.add": {"vdev": "xvdb", "target": "/b"},
        "drive.list": {},
        "drive.resize": {"vdev": "xvdb", "size": 1 << 21},
        "drive.set_limits": {"vdev": "xvdb", "ops_per_second": 100},
        "drive.flush": {"vdev": "xvdb"},
        "drive.swap": {"vdev": "xvdb", "target": "/c"},
        "drive.remove": {"vdev": "xvdb"},
        "fd.list": {},
        "fd.remove": {"name": "root", "missing_ok": True},
        "console.read": {},
        "console.write": {"text": "ls"},
        "console.list": {},
        "channel.add": {"name": "agent"},
        "channel.remove": {"name": "agent"},
        "console.viewers": {},
        "console.wait": {"regex": "^"},
        "console.kick": {"viewer": service.consoles.attach("0", "ro", None, None, "me").number},
        "console.steal": {"viewer": service.consoles.attach("0", "ro", None, None, "you").number},
        "console.clear": {},
        "xenstore.read": {"path": "/tool"},
        "xenstore.list": {"path": "/tool"},
        "xenstore.tree": {},
        "xenstore.write": {"path": "/tool/new", "text": "1"},
        "xenstore.remove": {"path": "/tool/new"},
        "xenstore.transaction": {"steps": [{"op": "read", "path": "/tool/name"}]},
        "xenstore.history": {},
        "xenstore.quotas": {},
        "xenstore.set_quota": {"name": "nodes", "limit": 7},
        "events.history": {},
        "events.subscribe": {"names": ["none"]},
        "events.unsubscribe": {},
        "guest.shutdown": {},
        "guest.start": {"paused": True},
        "guest.destroy": {},
        "daemon.quit": {},
    }
    assert set(METHODS) - set(asked) == {"console.attach", "fd.add", "xenstore.watch", "xenstore.unwatch"}
    for name, params in asked.items():
        reply = await ask(name, params)
        assert not list(replies.broken({"method": name}, reply)), name
        assert "result" in reply or reply["error"]["data"].get("feature") == "stream", name


def test_what_is_no_such_answer() -> None:
    reply = {"jsonrpc": "2.0", "id": 1}
    error = {"code": 1004, "message": "m", "data": {"reason": "BUSY"}}
    ping = {"method": "daemon.ping", "id": 1}
    pong = {"epoch": "e", "seq": 0}
    assert not list(
        replies.broken([ping], [{**reply, "result": pong}, {**reply, "id": None, "error": error}])
    )
    for wrong in (
        reply,
        {**reply, "result": pong, "error": error},
        {**reply, "result": {"epoch": 7, "seq": 0}},
        {**reply, "error": {**error, "code": 1003}},
        {**reply, "error": {**error, "data": {"reason": "NO_SUCH"}}},
    ):
        assert list(replies.broken(ping, wrong)) and list(replies.broken([ping], [wrong])), wrong
