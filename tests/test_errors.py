"""What can go wrong: every class carries what its reader needs, and its stable word."""

from __future__ import annotations

import inspect

import pytest

from xenpvd import errors
from xenpvd.errors import (
    BadConfig,
    GrantError,
    HostError,
    ImageError,
    KvmError,
    NotFound,
    StateError,
    XenError,
    XenpvdError,
    XenstoreFault,
)


@pytest.mark.parametrize(
    "fault, data",
    [
        (BadConfig("m", [("disk.0", "no")]), {"errors": [{"loc": "disk.0", "msg": "no"}]}),
        (BadConfig("m"), {"errors": []}),
        (StateError("m", "stopped", ["running"]), {"state": "stopped", "allowed": ["running"]}),
        (NotFound("m", "drive", "xvdb"), {"kind": "drive", "name": "xvdb"}),
        (ImageError("m", "/a.img"), {"path": "/a.img"}),
        (HostError("m", 12, "/x"), {"errno": 12, "path": "/x"}),
        (KvmError("m", "KVM_RUN", 14), {"ioctl": "KVM_RUN", "errno": 14}),
        (XenstoreFault("m", "EACCES", "/a"), {"error": "EACCES", "path": "/a"}),
        (XenpvdError("m", by="you"), {"by": "you"}),
    ],
)
def test_a_message_and_its_data(fault: XenpvdError, data: dict[str, object]) -> None:
    assert str(fault) == "m" and fault.data == data


def test_reasons_are_words_of_their_own() -> None:
    """Programs compare them; clients of old must not be surprised."""
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, XenpvdError)]
    reasons = {cls.__name__: cls.reason for cls in classes}
    assert len(set(reasons.values())) == len(reasons)
    assert reasons == {
        "XenpvdError": "FAILED",
        "BadConfig": "VALIDATION",
        "StateError": "GUEST_STATE",
        "NotFound": "NOT_FOUND",
        "Exists": "EXISTS",
        "Busy": "BUSY",
        "TimedOut": "TIMEOUT",
        "LimitReached": "LIMIT",
        "Unsupported": "UNSUPPORTED",
        "PermissionRefused": "PERMISSION",
        "ImageError": "IMAGE",
        "HostError": "HOST_IO",
        "KvmError": "HOST_KVM",
        "XenstoreFault": "XENSTORE",
    }


def test_the_guests_faults_are_not_the_operators() -> None:
    for cls in (XenError, GrantError, errors.GuestFault):
        assert not issubclass(cls, XenpvdError)


def test_numbers_on_the_wire() -> None:
    assert (XenError(22, "no such port").errno, str(XenError(22, "no such port"))) == (
        22,
        "Invalid argument: no such port",
    )
    assert str(XenError(1)) == "Operation not permitted"
    assert GrantError(-3, "gref 9 grants nothing").status == -3
