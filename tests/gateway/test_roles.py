"""What each role may ask for: all methods, by what they say themselves."""

from __future__ import annotations

from typing import Any

import pytest

from xenpvd.access import ROLES, Role, covers
from xenpvd.client.methods import STREAMING
from xenpvd.gateway.roles import Refused, judge, methods, need
from xenpvd.rpc.methods import METHODS


def request(method: str, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "id": 7, **more}


def refusal(message: Any, role: Role, streams: bool = True) -> Any:
    with pytest.raises(Refused) as caught:
        judge(message, role, streams)
    return caught.value.reply


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "console.attach"])
def test_every_method(method: str, role: Role) -> None:
    if covers(role, METHODS[method].role):
        judge(request(method), role, streams=True)
        judge([request(method)], role, streams=True)
        return
    reply = refusal(request(method), role)
    assert reply["id"] == 7 and reply["error"]["code"] == 1010
    assert reply["error"]["data"] == {"reason": "PERMISSION", "need": METHODS[method].role, "role": role}
    assert refusal([request(method)], role) == [reply]


def test_the_roles_are_three_and_used() -> None:
    assert {method.role for method in METHODS.values()} == set(ROLES)


def test_what_we_do_not_know_takes_admin() -> None:
    assert need("disk.format") == "admin"
    judge(request("disk.format"), "admin", streams=True)
    assert "'disk.format'" in refusal(request("disk.format"), "operator")["error"]["message"]
    long = refusal(request("x" * 10_000), "viewer")["error"]["message"]
    assert len(long) < 250


def test_a_batch_runs_whole_or_not_at_all() -> None:
    batch = [request("daemon.ping", id=1), request("drive.add", id="b"), {"method": "daemon.quit"}, 7]
    first, second, third = refusal(batch, "viewer")
    assert first["id"] == 1 and "nothing of this batch is run: drive.add" in first["error"]["message"]
    assert second["id"] == "b" and second["error"]["data"]["need"] == "operator"
    assert third["id"] is None
    assert refusal([{"method": "drive.add"}], "viewer") is None, "notifications are not answered"
    assert refusal({"method": "drive.add"}, "viewer") is None


@pytest.mark.parametrize("message", [7, None, "drive.add", [], [[request("drive.add")]], {"method": 7}, [{}]])
def test_what_calls_nothing_is_the_daemons_to_refuse(message: Any) -> None:
    assert methods(message) == []
    judge(message, "viewer", streams=True)


def test_no_connection_becomes_a_console_here() -> None:
    for message in (request("console.attach"), [request("console.attach")]):
        for role in ROLES:
            reply = refusal(message, role)
            error = (reply[0] if isinstance(reply, list) else reply)["error"]
            assert error["data"]["reason"] == "UNSUPPORTED" and "/console/NAME" in error["message"]


@pytest.mark.parametrize("method", STREAMING)
def test_nothing_streams_by_post(method: str) -> None:
    assert refusal(request(method), "admin", streams=False)["error"]["data"]["reason"] == "UNSUPPORTED"


@pytest.mark.parametrize("id_", [{}, [], True])
def test_an_id_that_is_none_is_not_answered_with(id_: Any) -> None:
    assert refusal(request("drive.add", id=id_), "viewer")["id"] is None
