"""The consoles' verbs over rpc.sock; the console is the real one, with no guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd.access import Role
from xenpvd.errors import PermissionRefused, TimedOut
from xenpvd.rpc.server import RpcServer

ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("console.read", {"since": 2, "max": 3}, {"start": 2, "end": 5, "lost": 0, "text": "llo"}),
    ("console.read", {"since": -4, "max": 2}, {"start": 3, "end": 5, "text": "lo"}),
    ("console.read", {"ago": 60}, {"start": 0, "end": 7, "text": "hello\r\n"}),
    ("console.read", {"ago": 0, "since": 1}, {"start": 7, "end": 7, "text": ""}),
    ("console.read", {"console": "xen", "max": 5}, {"text": "(XEN)"}),
    ("console.write", {"text": "ls\r"}, {"written": 3}),
    ("console.write", {"base64": "/wA="}, {"written": 2}),
    ("console.wait", {"regex": "l+(o)\\r$"}, {"start": 2, "end": 6, "text": "llo\r", "groups": ["o"]}),
    ("console.wait", {"regex": "h|(x)", "since": 0}, {"start": 0, "end": 1, "text": "h", "groups": [None]}),
    ("console.wait", {"console": "xen", "regex": "4.1\\d"}, {"text": "4.17"}),
]

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("console.read", {"console": "7"}, "NOT_FOUND", "Choose from 0, xen."),
    ("console.write", {"console": "xen", "text": "x"}, "UNSUPPORTED", "for reading only"),
    ("console.attach", {"console": "xen"}, "UNSUPPORTED", "Attach with mode ro"),
    ("console.wait", {"regex": "(a", "timeout": 0}, "VALIDATION", "missing )"),
    ("console.wait", {"regex": "(?=a)", "timeout": 0}, "VALIDATION", "no look-around"),
    ("console.wait", {"regex": "login:", "timeout": 0}, "TIMEOUT", "has not come on console 0 within 0 s"),
    ("console.wait", {"regex": "hello", "since": 1, "timeout": 0}, "TIMEOUT", "has not come"),
    ("console.kick", {"viewer": 99999}, "NOT_FOUND", "no viewer 99999"),
    ("console.clear", {"console": ""}, "NOT_FOUND", "no console ''"),
]


@pytest.mark.parametrize(("method", "params", "expected"), ROWS)
async def test_answers(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    """M6."""
    service.console.print(b"hello\r\n")
    await peer.answers(method, params, expected)


@pytest.mark.parametrize(("method", "params", "reason", "words"), REFUSED)
async def test_refusals(
    peer: Peer, service: FakeService, method: str, params: dict[str, Any], reason: str, words: str
) -> None:
    service.console.print(b"hello\r\n")
    fault = await peer.fault(method, **params)
    assert fault["data"]["reason"] == reason and words in fault["message"]


async def test_places_to_wait_are_kept_for_who_may_type(
    service: FakeService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpvd.consoles.WAITS_VIEWERS", 0)
    role: Role = "viewer"
    server = RpcServer(service, path, lambda peer: role)
    await server.start()
    service.console.print(b"hello\r\n")
    looker = await Peer.connect(path)
    assert (await looker.fault("console.wait", regex="hello"))["data"]["reason"] == "LIMIT"
    role = "operator"
    typist = await Peer.connect(path)
    assert (await typist.result("console.wait", regex="hello", since=0))["start"] == 0
    for peer in (looker, typist):
        await peer.close()
    await server.stop()


@pytest.mark.parametrize(("params", "timeout"), [({}, 30.0), ({"timeout": 0}, 0.0), ({"timeout": 1.5}, 1.5)])
async def test_write_has_a_limit_of_time(
    peer: Peer, service: FakeService, params: dict[str, Any], timeout: float
) -> None:
    asked: list[float] = []

    async def type_(data: bytes, timeout: float | None, check: Any) -> None:
        assert timeout is not None
        asked.append(timeout)
        raise TimedOut("cannot type all of it", written=2)

    service.console.type = type_  # type: ignore[method-assign]
    told = await peer.fault("console.write", text="ls\r", **params)
    assert told["code"] == 1005
    assert told["data"] == {"reason": "TIMEOUT", "written": 2}
    assert asked == [timeout]


async def test_who_is_there_and_who_must_go(peer: Peer, service: FakeService) -> None:
    service.console.print(b"0123456789")
    viewer = service.consoles.attach("0", "rw", 4, None, "somebody")
    (shown,) = await peer.result("console.viewers")
    assert shown == {
        "console": "0",
        "viewer": viewer.number,
        "who": "somebody",
        "mode": "rw",
        "since": shown["since"],
        "offset": 4,
        "behind": 6,
    }
    first, second = await peer.result("console.list")
    assert (first["console"], first["writer"], first["viewers"]) == ("0", "somebody", 1)
    assert (second["console"], second["input"], second["end"]) == ("xen", "none", 23)
    fault = await peer.fault("console.write", text="x")
    assert fault["data"] == {"reason": "BUSY", "by": "somebody"}
    await peer.result("console.kick", viewer=viewer.number)
    assert viewer.ended is not None and viewer.ended.startswith("ended by uid ")
    assert await peer.result("console.viewers") == []


async def test_what_is_cleared_is_gone_and_offsets_go_on(peer: Peer, service: FakeService) -> None:
    service.console.print(b"secret")
    await peer.result("console.clear")
    service.console.print(b"!")
    told = await peer.result("console.read")
    assert (told["start"], told["lost"], told["text"]) == (6, 6, "!")


async def test_a_wait_ends_with_what_comes(peer: Peer, service: FakeService) -> None:
    service.console.print(b"Debian GNU/Linux 12\r\n")
    peer.request("console.wait", regex="^web1 login: $", id_="wait")
    await peer.result("daemon.ping")
    for piece in (b"web", b"1 lo", b"gin: "):
        service.console.print(piece)
    reply = await peer.receive()
    assert reply["id"] == "wait" and reply["result"]["start"] == 21


async def test_who_only_looks_on_is_given_no_keyboard(service: FakeService, path: Path) -> None:
    server = RpcServer(service, path, lambda peer: "viewer")
    await server.start()
    looker = await Peer.connect(path)
    number = (await looker.result("console.attach", mode="ro"))["viewer"]
    with pytest.raises(PermissionRefused):
        service.consoles.steal(number)
    assert service.console.writer is None
    await looker.close()
    await server.stop()
