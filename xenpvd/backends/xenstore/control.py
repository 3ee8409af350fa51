"""XS_CONTROL: what ``xenstore-control`` asks of the daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EINVAL, ENOENT
from typing import NamedTuple

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore.quota import NAMES, USED
from xenpvd.backends.xenstore.request import OK, Op, Request, number
from xenpvd.backends.xenstore.wire import join, strings
from xenpvd.errors import XenError


def check(request: Request, *_: str) -> bytes:
    """Hold the tree against itself, and the accounts against it. There must be no fault; each is printed."""
    store = request.state.store
    faults = []
    for path, node in store.nodes():
        if "/" in path and path != "/":
            above = store.find(paths.parent(path))
            if above is None or paths.name(path) not in above.children:
                faults.append(f"{path}: its parent does not list it")
        faults += [
            f"{path}: there is no {leaf}"
            for leaf in node.children
            if store.find(paths.child(path, leaf)) is None
        ]
    owned = Counter(node.perms[0].domid for _, node in store.nodes())
    faults += [
        f"domain {domain.domid} owns {owned[domain.domid]} nodes, and pays for {domain.nodes}"
        for domain in request.state.domains
        if domain.nodes != owned[domain.domid]
    ]
    for fault in faults:
        _print(request, f"check: {fault}")
    return OK if not faults else join(f"{len(faults)} faults: see the log")


def log(request: Request, *switch: str) -> bytes:
    if not switch:
        return join(f"Log switch settings:\nrequests : {'on' if request.state.tracing else 'off'}\n")
    values = {"on": True, "+requests": True, "off": False, "-requests": False}
    if switch[0] not in values:
        raise XenError(EINVAL, "no switch")
    request.state.tracing = values[switch[0]]
    return OK


def print_(request: Request, text: str) -> bytes:
    _print(request, f"control: {ascii(text)[1:-1]}")
    return OK


def quota(request: Request, *words: str) -> bytes:
    domains = request.state.domains
    if not words:
        rows = "".join(f"{name:19}: {domains.get_quota(name):8}\n" for name in NAMES)
        return join("Quota settings:\n" + rows)
    if words[0] == "set":
        if len(words) != 3 or (value := number(words[2].encode(), "value", 0xFFFF_FFFF)) < 1:
            raise XenError(EINVAL, "set NAME VALUE, from 1 on")
        domains.set_quota(words[1], value)
        return OK
    domid = number(words[0].encode(), "domid", 65535)
    if len(words) != 1:
        raise XenError(EINVAL, "one domid")
    if domid not in request.state.introduced:
        raise XenError(ENOENT, f"no domain {domid}")
    domain = domains.of(domid)
    return join(f"Domain {domid}:\n" + "".join(f"{name:19}: {getattr(domain, name):8}\n" for name in USED))


def help_(request: Request, *_: str) -> bytes:
    return join("".join(f"{name:15} {command.usage}\n" for name, command in COMMANDS.items()))


class Command(NamedTuple):
    do: Callable[..., bytes]
    #: how many parameters it takes, least and most
    arity: tuple[int, int]
    usage: str = ""


COMMANDS = {
    "check": Command(check, (0, 0)),
    "log": Command(log, (0, 1), "[on|off|+requests|-requests]"),
    "print": Command(print_, (1, 1), "<string>"),
    "quota": Command(quota, (0, 3), "[set <name> <val>|<domid>]"),
    "help": Command(help_, (0, 0)),
}


def do_control(request: Request) -> bytes:
    words = [raw.decode("utf-8", "replace") for raw in strings(request.message.payload)]
    command = COMMANDS.get(words[0]) if words else None
    if command is None or not command.arity[0] <= len(words) - 1 <= command.arity[1]:
        raise XenError(EINVAL, "no such command, or not with so many parameters")
    return command.do(request, *words[1:])


def _print(request: Request, text: str) -> None:
    if request.state.rings is not None:
        request.state.rings.print(text)


OPERATIONS = {abi.XS_CONTROL: Op(do_control, privileged=True)}
