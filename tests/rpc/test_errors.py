"""Every class of the house has one number, and nothing of our own faults leaves it."""

from __future__ import annotations

import logging

import pytest

from tests.fakes.pydantic_errors import possible
from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer
from xenpvd import errors
from xenpvd.rpc.errors import CODES, _words, fault_of
from xenpvd.rpc.methods import METHODS

ROWS = [
    (errors.BadConfig("m", [("a.0", "b")]), -32602, "VALIDATION", {"errors": [{"loc": "a.0", "msg": "b"}]}),
    (errors.XenpvdError("m"), 1000, "FAILED", {}),
    (errors.StateError("m", "running", ["x"]), 1001, "GUEST_STATE", {"state": "running", "allowed": ["x"]}),
    (errors.NotFound("m", "drive", "xvda"), 1002, "NOT_FOUND", {"kind": "drive", "name": "xvda"}),
    (errors.Exists("m", vdev="xvda"), 1003, "EXISTS", {"vdev": "xvda"}),
    (errors.Busy("m", by="pid 1"), 1004, "BUSY", {"by": "pid 1"}),
    (errors.TimedOut("m"), 1005, "TIMEOUT", {}),
    (errors.LimitReached("m"), 1006, "LIMIT", {}),
    (errors.Unsupported("m", feature="x"), 1008, "UNSUPPORTED", {"feature": "x"}),
    (errors.PermissionRefused("m", need="admin"), 1010, "PERMISSION", {"need": "admin"}),
    (errors.ImageError("m", "/a"), 1020, "IMAGE", {"path": "/a"}),
    (errors.HostError("m", 28, "/a"), 1021, "HOST_IO", {"errno": 28, "path": "/a"}),
    (errors.KvmError("m", "KVM_RUN", 14), 1022, "HOST_KVM", {"ioctl": "KVM_RUN", "errno": 14}),
    (errors.XenstoreFault("m", "ENOENT", "/a"), 1031, "XENSTORE", {"error": "ENOENT", "path": "/a"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "code", "reason", "data"), ROWS, ids=[type(row[0]).__name__ for row in ROWS]
)
async def test_each_class_reaches_the_client(
    peer: Peer, service: FakeService, fault: Exception, code: int, reason: str, data: dict[str, object]
) -> None:
    service.faults["guest_destroy"] = fault
    assert await peer.fault("guest.destroy") == {
        "code": code,
        "message": "m",
        "data": {"reason": reason, **data},
    }


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("drive.flush", {"path": "/x"}, "vdev: it is missing; path: there is no such key. It takes vdev."),
        ("guest.pause", {"a": 1, "b": 1}, "a: there is no such key; b: there is no such key. "
         "It takes no parameters."),
        ("guest.wait", {"for_": "devices"}, "for: it is missing; for_: there is no such key. "
         "It takes for, timeout, since."),
        ("guest.start", {"config": {"kernel": "/k", "hats": 3}}, "config.hats: there is no such key."),
        ("drive.flush", {}, "vdev: it is missing."),
    ],
)  # fmt: skip
async def test_who_names_a_parameter_that_is_none(
    peer: Peer, method: str, params: dict[str, object], message: str
) -> None:
    fault = await peer.fault(method, **params)
    assert fault["message"] == f"cannot call {method}: {message}"


def test_the_table_is_complete() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    told = {kind for kind in kinds if issubclass(kind, errors.XenpvdError)}
    assert told == set(CODES) == {type(row[0]) for row in ROWS}
    assert len(set(CODES.values())) == len(CODES)


def test_a_subclass_goes_by_its_nearest() -> None:
    class Odd(errors.NotFound):
        pass

    assert fault_of(Odd("m", "path", "/"), "x").code == 1002


def test_data_that_is_no_json_is_told_as_text() -> None:
    data = fault_of(errors.XenpvdError("m", raw=b"\xff", odd=object, reason="MINE"), "x").data
    assert data == {"raw": "_w==", "odd": str(object), "reason": "FAILED"}


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("secret /etc/shadow"),
        OSError(13, "secret"),
        errors.XenError(22),
        errors.GuestFault("secret"),
    ],
)
async def test_our_own_faults_stay_inside(
    peer: Peer, service: FakeService, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    """P17."""
    service.faults["guest_destroy"] = fault
    with caplog.at_level(logging.ERROR):
        told = await peer.fault("guest.destroy")
    assert told["code"] == -32603
    incident = told["data"].pop("incident")
    assert told["data"] == {"reason": "INTERNAL"}
    assert incident in told["message"]
    assert "secret" not in str(told)
    assert incident in caplog.text
    assert "Traceback" in caplog.text


async def test_validation_tells_each_place(peer: Peer) -> None:
    told = await peer.fault("drive.add", vdev="nvme0", target=1, size="1G")
    assert told["code"] == -32602
    assert told["data"]["reason"] == "VALIDATION"
    assert {error["loc"] for error in told["data"]["errors"]} == {"vdev", "target", "size"}
    assert all(set(error) == {"loc", "msg", "type"} for error in told["data"]["errors"])
    assert "vdev" in told["message"]


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("evtchn.inject", {"port": 0}, "port: it must be at least 1"),
        ("hypercall.stats", {"recent": 257}, "recent: it must be at most 256"),
        ("console.attach", {"since": 1 << 63}, f"since: it must be less than {1 << 63}"),
        ("guest.shutdown", {"then": "wait"}, "then: it must be 'fail' or 'destroy'"),
        ("guest.shutdown", {"timeout": "1"}, "timeout: it must be a number"),
        ("events.history", {"names": []}, "names: it must have 1 or more items"),
        ("events.history", {"names": ["a"] * 33}, "names: it must have at most 32 items"),
        ("events.history", {"names": [""]}, "names.0: it must have 1 or more characters"),
        ("events.subscribe", {"epoch": "x" * 65}, "epoch: it must have at most 64 characters"),
        ("xenstore.read", {"path": 1}, "path: it must be a text"),
    ],
)
async def test_bounds_in_plain_words(peer: Peer, method: str, params: dict[str, object], words: str) -> None:
    assert (await peer.fault(method, **params))["message"] == f"cannot call {method}: {words}."


def test_everything_that_may_be_wrong_has_words_of_ours() -> None:
    for method in METHODS.values():
        for error in possible(method.params):
            assert "Input should" not in _words(error), (method.name, error)


async def test_validation_of_a_million_keys_is_short(peer: Peer) -> None:
    told = await peer.fault("daemon.ping", **{f"k{i}": 1 for i in range(50_000)})
    assert len(told["data"]["errors"]) == 20
