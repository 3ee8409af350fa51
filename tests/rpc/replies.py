"""What the API's document promises of a reply: a result of the method's schema, or an error of its list."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft7Validator

from xenpvd.rpc import schema
from xenpvd.rpc.methods import METHODS

DOCUMENT = schema.document(METHODS)
CODES = {reason: error["code"] for reason, error in DOCUMENT["components"]["errors"].items()}


@cache
def _validator(method: str) -> Draft7Validator:
    (entry,) = (entry for entry in DOCUMENT["methods"] if entry["name"] == method)
    return Draft7Validator({"allOf": [entry["result"]["schema"]], "components": DOCUMENT["components"]})


def broken(request: Any, reply: Any) -> Iterator[str]:
    """Promises that ``reply`` to ``request``, both as parsed JSON, does not keep."""
    if isinstance(reply, list):
        asked = {one["id"]: one for one in request if isinstance(one, dict) and one.get("id") is not None}
        for one in reply:
            yield from broken(asked.get(one["id"]), one)
        return
    if not {"jsonrpc", "id"} < reply.keys() <= {"jsonrpc", "id", "result", "error"} or len(reply) != 3:
        yield f"{reply} is no reply of JSON-RPC 2.0"
    elif "error" in reply:
        error = reply["error"]
        if set(error) != {"code", "message", "data"} or CODES.get(error["data"]["reason"]) != error["code"]:
            yield f"{error} is none of the document's errors"
    elif isinstance(request, dict):
        for fault in _validator(request["method"]).iter_errors(reply["result"]):
            yield f"{request['method']}: {fault.json_path}: {fault.message}"
