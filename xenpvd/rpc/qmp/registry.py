"""Where each QMP command is declared once; and where to go for those that are not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import ValidationError

from xenpvd.rpc.errors import invalid_params
from xenpvd.rpc.models import Params
from xenpvd.rpc.qmp.monitor import Monitor
from xenpvd.rpc.qmp.protocol import Refused, Request


@dataclass(frozen=True, slots=True)
class Command:
    run: Callable[[Monitor, Any], Awaitable[Any]]
    params: type[Params]


COMMANDS: dict[str, Command] = {}

_Run = TypeVar("_Run", bound=Callable[[Monitor, Any], Awaitable[Any]])

#: Commands of QEMU's that programs try, and the method of rpc.sock that does it
INSTEAD = {
    "add-fd": "fd.add",
    "balloon": "memory.set_target",
    "blockdev-change-medium": "drive.swap",
    "blockdev-reopen": "drive.swap",
    "chardev-add": "channel.add",
    "chardev-remove": "channel.remove",
    "closefd": "fd.remove",
    "eject": "drive.swap",
    "getfd": "fd.add",
    "inject-nmi": "guest.sysrq",
    "query-balloon": "memory.info",
    "query-blockstats": "drive.list",
    "query-chardev": "console.list",
    "query-fdsets": "fd.list",
    "query-hotpluggable-cpus": "vcpu.list",
    "query-memory-size-summary": "memory.info",
    "query-qmp-schema": "rpc.discover",
    "remove-fd": "fd.remove",
    "ringbuf-read": "console.read",
    "ringbuf-write": "console.write",
}


def command(name: str) -> Callable[[_Run], _Run]:
    """Declare ``async def run(monitor: Monitor, params: P) -> R``: P is a model, R JSON or None."""

    def declare(run: _Run) -> _Run:
        COMMANDS[name] = Command(run, get_type_hints(run)["params"])
        return run

    return declare


async def run(monitor: Monitor, request: Request) -> Any:
    """Its result. What does not fit the parameters is refused before anything happens."""
    name = request.command
    found = COMMANDS.get(name)
    if found is None:
        way = f" By rpc.sock, {INSTEAD[name]} does it." if name in INSTEAD else " query-commands lists them."
        raise Refused(f"there is no command {name[:64]!r} here.{way}", "CommandNotFound")
    try:
        params = found.params.model_validate(request.arguments)
    except ValidationError as fault:
        raise Refused(invalid_params(fault, name, found.params).message) from None
    return await found.run(monitor, params)
