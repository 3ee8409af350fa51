"""What a daemon says of methods and parameters, in the words of who typed a verb."""

from __future__ import annotations

import re

import click

from xenpvd.ctl.client import RpcFault

#: The verb for a method that a daemon's messages name as a cure
VERBS = {
    "console.kick": "kick {name} VIEWER",
    "console.list": "channel list {name}",
    "console.viewers": "viewers {name}",
    "drive.list": "drive list {name}",
    "drive.swap": "drive swap {name} VDEV TARGET",
    "fd.list": "fd list {name}",
    "fd.remove": "fd remove {name} FD",
    "guest.start": "start FILE",
    "log.tail": "daemon-log {name}",
}
#: Where a parameter stands on the command line, if it has another name there
PLACES = {
    "ago": "--since",
    "bytes_per_second": "--bytes",
    "for": "--wait",
    "limit": "LIMIT",
    "max": "--lines",
    "names": "PATTERNS",
    "ops_per_second": "--ops",
    "text": "VALUE",
}

_METHOD = r"[a-z_]+\.[a-z_]+"
#: What a definition's keys come in
_CONFIG = "config."


def spoken(fault: RpcFault, verb: click.Context | None) -> str:
    """The message of ``fault``, which ``verb`` met; as it is for ``call``, whose user speaks RPC."""
    if verb is None or verb.command.name == "call":
        return fault.message
    typed = verb.command_path.partition(" ")[2]
    errors = fault.data.get("errors")
    if fault.data.get("reason") == "VALIDATION" and isinstance(errors, list) and errors:
        found = [(str(error.get("loc")), str(error.get("msg"))) for error in errors]
        told = "; ".join(f"{_place(loc, verb.command)}: {msg}" for loc, msg in found)
        if all(loc.startswith(_CONFIG) for loc, _ in found):
            return f"cannot use the definition: {told}. Mend these keys (xenpvd.toml)."
        if fault.message.startswith("cannot call "):  # else it is no fault of the command line
            return f"cannot use {told}. See: xenpvctl {typed} --help"
    message = re.sub(rf"^cannot call {_METHOD}:", "cannot do this:", fault.message)
    message = re.sub(rf"^{_METHOD} failed:", "that failed:", message)
    name = verb.params.get("name", "NAME")

    def cure(method: re.Match[str]) -> str:
        instead = VERBS.get(method[0])
        return method[0] if instead is None else f"xenpvctl {instead.format(name=name)}"

    return _with_dashes(re.sub(rf"\b{_METHOD}\b", cure, message), verb.command)


def _with_dashes(message: str, command: click.Command) -> str:
    """Where a cure names flags of ``command``'s: ``with shrink``, ``: shutdown or destroy``."""
    options = (param for param in command.params if isinstance(param, click.Option) and param.is_flag)
    flag = "|".join(opt[2:] for option in options for opt in option.opts if opt.startswith("--"))
    named = rf"(\b(?:with|[Uu]se) |: )((?:{flag})(?: or (?:{flag}))*)(?=[.,])"

    def dashed(found: re.Match[str]) -> str:
        return found[1] + " or ".join(f"--{word}" for word in found[2].split(" or "))

    return re.sub(named, dashed, message)


def _place(loc: str, command: click.Command) -> str:
    """As who typed ``command`` knows the parameter at ``loc``: SIZE, --sector-size."""
    if loc.startswith(_CONFIG):
        return loc.removeprefix(_CONFIG)
    field = next((part for part in reversed(loc.split(".")) if not part.isdigit()), loc)
    if field == "name":  # what the verb is about: the guest's goes into no call
        return _what(command)
    for param in command.params[::-1]:
        if isinstance(param, click.Option):
            for name in param.opts:
                if name == "--" + field.replace("_", "-"):
                    return name
        elif param.name != "name" and field in (param.name, (param.metavar or "").strip("[]").lower()):
            return field.upper()
    return PLACES.get(field, field)


def _what(command: click.Command) -> str:
    """What the command's second argument stands for: CHANNEL, FD, QUOTA; the first is the guest."""
    arguments = (param for param in command.params if isinstance(param, click.Argument))
    told = [param.metavar or (param.name or "").upper() for param in arguments][1]
    return re.sub("[^A-Z].*", "", told.strip("["))
