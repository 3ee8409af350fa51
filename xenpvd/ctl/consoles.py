"""console, log, viewers, kick: a guest's consoles, and who else is at them."""

from __future__ import annotations

import base64
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from xenpvd.ctl import completion
from xenpvd.ctl.client import Client, NoAnswer, RpcFault
from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.options import apart
from xenpvd.ctl.output import Failure, duration, emit, json_option, table, wants_json
from xenpvd.ctl.rundir import NoGuest, RunDir

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Since(click.ParamType):  # type: ignore[type-arg]  # of newer clicks only
    """An offset as ``{"since": N}``, or a time as ``{"ago": SECONDS}``."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if (found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value)) is not None:
            return {"ago": float(found[1]) * _UNITS[found[2]]}
        if re.fullmatch(r"-?[0-9]{1,18}", value):
            return {"since": int(value)}
        self.fail(f"{value!r} is neither a byte's number nor a time: 4096, -500, 10m, 2h.", param, ctx)


_since_option = click.option(
    "--since",
    type=Since(),
    default="0",
    metavar="WHERE",
    help="Begin with what came in the last so long: 30s, 10m, 2h, 1d; or at this byte of what it printed, "
    "from its end if negative. Default: the oldest kept.",
)
_console_option = click.option(
    "-c",
    "--console",
    "which",
    default="0",
    show_default=True,
    shell_complete=completion.consoles,
    help="0 is the guest's own (hvc0), xen the log of the Xen below it.",
)


@click.command()
@guest_argument
@_console_option
@click.option("--ro", is_flag=True, help="Watch only.")
@click.option("--steal", is_flag=True, help="Take the keyboard from who has it.")
@click.option(
    "-e",
    "--escape",
    default="^]",
    show_default=True,
    envvar="XENPVCTL_ESCAPE",
    help="The key that leaves: ^A to ^_, or a letter. Default also by XENPVCTL_ESCAPE.",
)
@_since_option
@click.option(
    "--pty",
    "link",
    type=click.Path(path_type=Path),
    metavar="LINK",
    help="Make LINK a terminal that other programs can open, for as long as this runs.",
)
@json_option
@apart("--ro", "--steal")
@apart("--pty", "--escape")
@click.pass_obj
def console(
    place: RunDir,
    name: str,
    which: str,
    ro: bool,
    steal: bool,
    escape: str,
    since: dict[str, Any],
    link: Path | None,
) -> None:
    """Sit down at a guest's console.

    What it printed so far comes first (see --since). Without a terminal stdin is typed until its
    end, and stdout gets what the guest prints; with --ro stdin is not looked at, and it goes on until
    the daemon ends. For what is kept, and no more: log.
    """
    mode = "ro" if ro else "steal" if steal else None
    title = f"{name} console" if which == "0" else f"{name} console {which}"
    if link is not None:
        _serve_pty(place, name, title, link, mode, {"console": which, **since})
        return
    from xenpvd.ctl import console as terminal

    try:
        key = terminal.parse_escape(escape)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint="--escape") from None
    with place.connect(name) as client:
        others = sum(viewer["console"] == which for viewer in client.call("console.viewers"))
        attached, sock, pending = _attach(client, mode, console=which, **since)
        rw = attached["mode"] == "rw"
        words = "read-write" if rw else "read-only"
        if others:
            words += f", {others} other viewer{'s' if others > 1 else ''}"
        end = terminal.converse(sock, pending, name=f"{title} ({words})", escape=key, keyboard=rw)
    if end is terminal.End.CLOSED:
        _explain_end(place, name, attached["viewer"])


def _attach(client: Client, mode: str | None, **params: Any) -> tuple[dict[str, Any], socket.socket, bytes]:
    """``mode`` None: with the keyboard, if there is one that this user may have."""
    if mode is None:
        consoles = {one["console"]: one for one in client.call("console.list")}
        has_keyboard = consoles.get(params["console"], {}).get("input") != "none"
        mode = "rw" if has_keyboard and client.hello.get("role") != "viewer" else "ro"
    if params.get("since", 0) < 0:
        start = {"console": params["console"], "max": 1, "since": params["since"]}
        params["since"] = client.call("console.read", start)["start"]
    return client.attach(mode, **params)


def _serve_pty(
    place: RunDir, name: str, title: str, link: Path, mode: str | None, params: dict[str, Any]
) -> None:
    from xenpvd.ctl import pty

    viewer = 0

    def attach() -> tuple[socket.socket, bytes]:
        nonlocal viewer
        try:
            attached, sock, pending = _attach(place.connect(name), mode, **params)
        except RpcFault as fault:
            if fault.data.get("reason") != "BUSY":
                raise
            click.echo(f"xenpvctl: {fault.message} This opening looks on.", err=True)
            attached, sock, pending = _attach(place.connect(name), "ro", **params)
        viewer = attached["viewer"]
        return sock, pending

    with place.connect(name) as client:

        def told(path: str) -> None:
            click.echo(f"{title} is {path}, {link}; ^C ends it", err=True)

        pty.serve(link, attach, client.gone, told)
    _explain_end(place, name, viewer)


def _explain_end(place: RunDir, name: str, viewer: int) -> None:
    """A console ends with its daemon, as it should, or because this viewer did not keep up, or was ended."""
    try:
        with place.connect(name) as client:
            state = client.call("guest.status")["state"]
            ends = client.call("events.history", {"names": ["console.detached", "daemon.stopping"]})
    except (NoGuest, NoAnswer):
        ends = [{"name": "daemon.stopping"}]
    if any(end["name"] == "daemon.stopping" for end in ends):
        click.echo(f"{name} is gone", err=True)
        return
    why = next((end["data"]["why"] for end in reversed(ends) if end["data"]["viewer"] == viewer), None)
    if why is not None or state in ("running", "paused"):
        raise Failure(f"the console of {name} was cut off: {why or 'it is not known why'}. Attach again.")
    click.echo(f"{name} is {state}", err=True)


@click.command()
@guest_argument
@_console_option
@_since_option
@json_option
@click.pass_obj
def log(place: RunDir, name: str, which: str, since: dict[str, Any]) -> None:
    """Print what a guest's console has recorded, or Xen's own log, up to now."""
    with place.connect(name) as client:
        # the guest may print faster than this reads: what comes later is not waited for
        end = client.call("console.read", {"console": which, "since": -1, "max": 1})["end"]
        pieces = _recorded(client, which, since, end)
        if wants_json():
            found = list(pieces)
            start = found[0][0] if found else end
            text = b"".join(data for _, data in found).decode(errors="replace")
            emit({"console": which, "start": start, "end": end, "text": text}, "")
            return
        for _, data in pieces:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _recorded(client: Client, which: str, since: dict[str, Any], end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each piece that is kept, up to the offset ``end``."""
    while True:
        chunk = client.call("console.read", {"console": which, **since})
        text = chunk["text"]
        data = text.encode() if text is not None else base64.b64decode(chunk["base64"])
        if chunk["start"] >= end or not data:
            return
        yield chunk["start"], data[: end - chunk["start"]]
        since = {"since": chunk["end"]}


@click.command()
@guest_argument
@json_option
@click.pass_obj
def viewers(place: RunDir, name: str) -> None:
    """Who is at a guest's consoles."""
    with place.connect(name) as client:
        found = client.call("console.viewers")
    now = time.time()
    head = ("VIEWER", "CONSOLE", "MODE", "FOR", "BEHIND", "WHO")
    rows = [
        (one["viewer"], one["console"], one["mode"], duration(now - one["since"]), one["behind"], one["who"])
        for one in found
    ]
    emit(found, table(head, rows, right={"VIEWER", "BEHIND"}))


@click.command()
@guest_argument
@click.argument("viewer", type=int, shell_complete=completion.viewers)
@json_option
@click.pass_obj
def kick(place: RunDir, name: str, viewer: int) -> None:
    """End a viewer of a guest's console, by its number from "viewers"."""
    with place.connect(name) as client:
        client.call("console.kick", {"viewer": viewer})
    emit({"viewer": viewer}, f"viewer {viewer} of {name} is ended")
