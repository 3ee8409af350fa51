"""Refusals as exceptions: of the classes that the daemon meant, with code, reason and data."""

from __future__ import annotations

from typing import Any

import pytest

from xenpvd import errors
from xenpvd.client.errors import ConnectionLost, RpcError, refusal
from xenpvd.rpc.errors import CODES, fault_of


@pytest.mark.parametrize(
    "fault",
    [
        errors.StateError("it runs.", "running", ["stopped"]),
        errors.NotFound("no xvdb.", "drive", "xvdb"),
        errors.Exists("another xvdb.", vdev="xvdb"),
        errors.Busy("taken.", by="pid 1"),
        errors.TimedOut("late.", written=3),
        errors.LimitReached("full."),
        errors.Unsupported("not here."),
        errors.PermissionRefused("not you."),
        errors.ImageError("torn.", "/a"),
        errors.HostError("no.", 28, "/a"),
        errors.KvmError("no.", "KVM_RUN", 4),
        errors.XenstoreFault("no node.", "ENOENT", "/a"),
        errors.BadConfig("bad.", [("disk.0", "no")]),
        errors.XenpvdError("else."),
    ],
    ids=lambda fault: fault.reason,
)
def test_what_the_daemon_raises_is_what_a_program_catches(fault: errors.XenpvdError) -> None:
    told = fault_of(fault, "a.b")._asdict()
    got = refusal(told)
    assert isinstance(got, type(fault)) and isinstance(got, RpcError)
    assert (str(got), got.code, got.reason) == (str(fault), CODES[type(fault)], fault.reason)
    assert got.data == told["data"]
    assert got.problems == getattr(fault, "problems", [])


def test_every_class_of_the_table_has_its_own() -> None:
    for kind, code in CODES.items():
        if issubclass(kind, errors.XenpvdError):
            assert isinstance(refusal({"code": code, "message": "", "data": {"reason": kind.reason}}), kind)


def test_reasons_of_a_newer_daemon() -> None:
    got = refusal({"code": 1099, "message": "m", "data": {"reason": "NEW", "message": 1, "self": 2}, "x": 1})
    assert type(got) is RpcError and (got.code, got.reason, got.data["self"]) == (1099, "NEW", 2)
    bare = refusal({"code": -32000, "message": "m"})
    assert (bare.reason, bare.data, bare.problems) == ("FAILED", {}, [])


@pytest.mark.parametrize("error", [None, "no", {}, {"code": "1", "message": "m"}, {"code": 1}])
def test_what_is_no_error(error: Any) -> None:
    with pytest.raises(ValueError, match="without code or message"):
        refusal(error)


def test_a_lost_connection_says_what_may_have_been_done() -> None:
    fault = ConnectionLost("m", maybe_done=True)
    assert (fault.maybe_done, fault.data, fault.reason) == (True, {"maybe_done": True}, "CONNECTION_LOST")
