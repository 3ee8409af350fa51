"""The OpenRPC document is whole, and what is kept in schemas/ is what the code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.jobs import Work
from xenpvd.rpc import __main__, schema
from xenpvd.rpc.methods import METHODS

SCHEMAS = Path(__file__).parents[2] / "schemas"
DOCUMENT = schema.document(METHODS)


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


def test_every_schema_is_one() -> None:
    for method in DOCUMENT["methods"]:
        for descriptor in [*method["params"], method["result"]]:
            Draft202012Validator.check_schema({**descriptor["schema"], "components": DOCUMENT["components"]})
    for each in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(each)


def test_openrpc_rules() -> None:
    assert DOCUMENT["openrpc"].startswith("1.3")
    names = [method["name"] for method in DOCUMENT["methods"]]
    assert len(set(names)) == len(names)
    for method in DOCUMENT["methods"]:
        assert set(method) >= {"name", "summary", "params", "result", "errors", "paramStructure", "x-role"}
        required = [param["required"] for param in method["params"]]
        assert required == sorted(required, reverse=True), f"{method['name']}: required ones come first"


def work() -> Work:
    yield 1
    return {"file": "/a"}


async def test_answers_fit_their_schemas(peer: Peer, service: FakeService) -> None:
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
    by_name = {method["name"]: method for method in DOCUMENT["methods"]}
    for name, params in asked.items():
        result = await peer.result(name, **params)
        expected = {**by_name[name]["result"]["schema"], "components": DOCUMENT["components"]}
        assert not list(Draft202012Validator(expected).iter_errors(result)), name
