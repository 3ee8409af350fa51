"""From a parsed message to its reply. The one file that knows jsonrpcserver.

jsonrpcserver matches the method, calls it and shapes the reply of one well-formed request. What it leaves
open is done here: batches go element by element, an invalid request keeps its id, parameters and results go
through the models, and no exception's text reaches a client unasked.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from jsonrpcserver import JsonRpcError, Result, Success, async_dispatch_to_serializable
from pydantic import ValidationError

from xenpvd.errors import LimitReached, PermissionRefused
from xenpvd.rpc.errors import (
    CODES,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Fault,
    fault_of,
    invalid_params,
    protocol_fault,
)
from xenpvd.rpc.methods import METHODS
from xenpvd.rpc.registry import Call, Method

BATCH_MAX = 64
#: What calls of no method of ours are counted as: clients can make up as many names as they like
NO_METHOD = "none"

Reply = dict[str, Any] | list[dict[str, Any]]


async def dispatch(message: Any, call: Call) -> Reply | None:
    """Run ``message`` (any JSON value), a batch in its order. None if there is nothing to answer."""
    if not isinstance(message, list):
        return await _dispatch_one(message, call)
    if not message:
        return protocol_fault(INVALID_REQUEST, "a batch cannot be empty", "INVALID_REQUEST").reply(None)
    if len(message) > BATCH_MAX:
        why = f"cannot run a batch of {len(message)}: the limit is {BATCH_MAX}. Split it."
        return protocol_fault(CODES[LimitReached], why, LimitReached.reason).reply(None)
    replies = []
    for element in message:
        if (reply := await _dispatch_one(element, call)) is not None:
            replies.append(reply)
        await asyncio.sleep(0)  # others get their turn, whatever this one was
    return replies or None


async def _dispatch_one(request: Any, call: Call) -> dict[str, Any] | None:
    why = _invalid(request)
    if why is not None:
        id_ = request.get("id") if isinstance(request, dict) else None
        fault = protocol_fault(INVALID_REQUEST, f"invalid request: {why}", "INVALID_REQUEST")
        call.service.calls.end(NO_METHOD, INVALID_REQUEST)
        return fault.reply(id_ if _is_id(id_) else None)
    return await async_dispatch_to_serializable(  # type: ignore[return-value]
        request, _HANDLERS, context=call, deserializer=_identity, validator=_identity
    )


def _invalid(request: Any) -> str | None:
    """Why ``request`` is no JSON-RPC 2.0 request object, or None."""
    if not isinstance(request, dict):
        return "it must be an object"
    if request.get("jsonrpc") != "2.0":
        return 'jsonrpc must be "2.0"'
    if not isinstance(request.get("method"), str):
        return "method must be a string"
    if not isinstance(request.get("params", {}), dict | list):
        return "params must be an object"
    if not _is_id(request.get("id")):
        return "id must be a string, a number or null"
    return None


def _is_id(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))


def _identity(value: Any) -> Any:
    return value


def _refuse(call: Call, method: str, fault: Fault) -> NoReturn:
    call.service.calls.end(method, fault.code)
    raise JsonRpcError(*fault) from None


def _handler(method: Method) -> Callable[..., Awaitable[Result]]:
    """What jsonrpcserver calls. It must return a Success, and raise JsonRpcError only."""

    async def handle(call: Call, /, *args: Any, **params: Any) -> Result:
        if args:
            why = f"cannot call {method.name}: parameters go by name, as an object."
            _refuse(call, method.name, Fault(INVALID_PARAMS, why, {"reason": "VALIDATION", "errors": []}))
        try:
            call.need(method.role, f"call {method.name}")
            fields = method.params.model_validate(params)
        except ValidationError as fault:
            _refuse(call, method.name, invalid_params(fault, method.name, method.params))
        except PermissionRefused as fault:
            _refuse(call, method.name, fault_of(fault, method.name))
        try:
            run = method.run(call, fields)
            result = await (call.client.waiting(call, run) if method.wait else run)
            answer = Success(method.result.dump_python(result, mode="json", by_alias=True))
        except Exception as fault:
            _refuse(call, method.name, fault_of(fault, method.name))
        call.service.calls.end(method.name)
        return answer

    handle.__signature__ = inspect.signature(handle)  # type: ignore[attr-defined] # asked for at every call
    return handle


class _Handlers(dict[str, Callable[..., Awaitable[Result]]]):
    def __missing__(self, name: str) -> Callable[..., Awaitable[Result]]:
        async def unknown(call: Call, /, *args: Any, **params: Any) -> Result:
            why = f"there is no method {name[:64]!r}; rpc.discover lists them"
            _refuse(call, NO_METHOD, protocol_fault(METHOD_NOT_FOUND, why, "METHOD_NOT_FOUND"))

        return unknown


_HANDLERS = _Handlers({name: _handler(method) for name, method in METHODS.items()})
