"""From an exception to a JSON-RPC error: the one table of numbers, and what a client may read of a fault."""

from __future__ import annotations

import logging
import secrets
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from xenpvd import config
from xenpvd.errors import (
    BadConfig,
    Busy,
    Exists,
    HostError,
    ImageError,
    KvmError,
    LimitReached,
    NotFound,
    PermissionRefused,
    StateError,
    TimedOut,
    Unsupported,
    XenpvdError,
    XenstoreFault,
)
from xenpvd.rpc.models import PERMISSION, SYSRQ_KEY

log = logging.getLogger(__name__)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

#: The nearest class in an exception's MRO counts.
CODES: dict[type[XenpvdError], int] = {
    BadConfig: INVALID_PARAMS,
    XenpvdError: 1000,
    StateError: 1001,
    NotFound: 1002,
    Exists: 1003,
    Busy: 1004,
    TimedOut: 1005,
    LimitReached: 1006,
    Unsupported: 1008,
    PermissionRefused: 1010,
    ImageError: 1020,
    HostError: 1021,
    KvmError: 1022,
    XenstoreFault: 1031,
}

#: Patterns of the parameters' own, in a user's words.
_WORDS = {
    SYSRQ_KEY: "it must be one letter or digit, as s",
    PERMISSION: "it must be n, r, w or b with a domain's number, as r0",
}

#: A request with a million unknown keys is told of the first ones.
ERRORS_MAX = 20


class Fault(NamedTuple):
    """A JSON-RPC error object. ``data`` always has ``reason``, a stable upper-case word."""

    code: int
    message: str
    data: dict[str, Any]

    def reply(self, id_: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "error": self._asdict(), "id": id_}


def protocol_fault(code: int, message: str, reason: str) -> Fault:
    """A fault of the message itself, not of a method."""
    return Fault(code, message, {"reason": reason})


def parse_fault(why: str) -> Fault:
    return protocol_fault(PARSE_ERROR, f"cannot parse the message: {why}", "PARSE_ERROR")


def fault_of(fault: Exception, method: str) -> Fault:
    """What the client of ``method`` reads of ``fault``.

    A fault of ours (no :class:`XenpvdError`) is logged with its traceback under an incident number; the
    number is all that leaves the house.
    """
    if not isinstance(fault, XenpvdError):
        incident = secrets.token_hex(4)
        log.error("incident %s in %s", incident, method, exc_info=fault)
        message = f"{method} failed: a fault of the daemon, incident {incident}. Its log has the traceback."
        return Fault(INTERNAL_ERROR, message, {"reason": "INTERNAL", "incident": incident})
    code = next(CODES[kind] for kind in type(fault).__mro__ if kind in CODES)
    data = to_jsonable_python(fault.data, fallback=str, bytes_mode="base64")
    return Fault(code, str(fault), {**data, "reason": fault.reason})


def _words(error: ErrorDetails) -> str:
    return _WORDS.get(error.get("ctx", {}).get("pattern", "")) or config.words(error)


def invalid_params(fault: ValidationError, method: str, params: type[BaseModel]) -> Fault:
    """Parameters that do not fit ``method``'s model; ``loc`` is dotted, as ``config.disk.0.access``. Who has
    named one that there is not is told those that there are."""
    errors = [
        {"loc": ".".join(map(str, error["loc"])) or "(params)", "msg": _words(error), "type": error["type"]}
        for error in fault.errors(include_url=False, include_input=False)[:ERRORS_MAX]
    ]
    lines = "; ".join(f"{error['loc']}: {error['msg']}" for error in errors)
    why = f"cannot call {method}: {lines}."
    if any(error["type"] == "extra_forbidden" and "." not in error["loc"] for error in errors):
        names = [field.alias or name for name, field in params.model_fields.items()]
        why += f" It takes {', '.join(names) or 'no parameters'}."
    return Fault(INVALID_PARAMS, why, {"reason": "VALIDATION", "errors": errors})
