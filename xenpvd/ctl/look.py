"""console, log, events, call: what goes on in a guest."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from xenpvd.ctl.client import Client, NoAnswer
from xenpvd.ctl.output import USAGE, Failure, emit, json_option, moment, wants_json
from xenpvd.ctl.rundir import NoGuest, RunDir


@click.command()
@click.argument("name")
@click.option("--ro", "mode", flag_value="ro", help="Watch only.")
@click.option("--steal", "mode", flag_value="steal", help="Take the keyboard from who has it.")
@click.option(
    "-e", "--escape", default="^]", show_default=True, help="The key that leaves: ^A to ^_, or a letter."
)
@click.option(
    "--since",
    type=int,
    metavar="OFFSET",
    help="Begin at this byte of what it printed; negative: so many before its end. Default: the oldest kept.",
)
@json_option
@click.pass_obj
def console(place: RunDir, name: str, mode: str | None, escape: str, since: int | None) -> None:
    """Sit down at a guest's console.

    What it printed so far comes first (see --since). Without a terminal stdin is typed until its
    end, and stdout gets what the guest prints.
    """
    from xenpvd.ctl import console as terminal

    try:
        key = terminal.parse_escape(escape)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint="--escape") from None
    with place.connect(name) as client:
        if since is not None and since < 0:
            since = client.call("console.read", {"since": since, "max": 1})["start"]
        attached, sock, pending = client.attach(mode or "rw", since)
        rw = attached["mode"] == "rw"
        words = "read-write" if rw else "read-only"
        end = terminal.converse(sock, pending, name=f"{name} console ({words})", escape=key, keyboard=rw)
    if end is terminal.End.CLOSED:
        _explain_end(place, name)


def _explain_end(place: RunDir, name: str) -> None:
    """A console ends with its daemon, as it should, or because this viewer did not keep up."""
    try:
        with place.connect(name) as client:
            state = client.call("guest.status")["state"]
    except (NoGuest, NoAnswer):
        state = "gone"
    if state in ("running", "paused"):
        raise Failure(f"the console of {name} was cut off: this viewer was too slow. Attach again.")
    click.echo(f"{name} is {state}", err=True)


@click.command()
@click.argument("name")
@click.option("--stream", type=click.Choice(["guest", "xen"]), default="guest", show_default=True)
@json_option
@click.pass_obj
def log(place: RunDir, name: str, stream: str) -> None:
    """Print what a guest's console has recorded, or Xen's own log, up to now."""
    with place.connect(name) as client:
        # the guest may print faster than this reads: what comes later is not waited for
        end = client.call("console.read", {"stream": stream, "since": -1, "max": 1})["end"]
        pieces = _recorded(client, stream, end)
        if wants_json():
            found = list(pieces)
            start = found[0][0] if found else end
            text = b"".join(data for _, data in found).decode(errors="replace")
            emit({"stream": stream, "start": start, "end": end, "text": text}, "")
            return
        for _, data in pieces:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _recorded(client: Client, stream: str, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each piece that is kept, up to the offset ``end``."""
    since = 0
    while since < end:
        chunk = client.call("console.read", {"stream": stream, "since": since})
        text = chunk["text"]
        data = text.encode() if text is not None else base64.b64decode(chunk["base64"])
        if chunk["start"] >= end or not data:
            return
        yield chunk["start"], data[: end - chunk["start"]]
        since = chunk["end"]


@click.command()
@click.argument("name")
@click.argument("patterns", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens.")
@json_option
@click.pass_obj
def events(place: RunDir, name: str, patterns: tuple[str, ...], follow: bool) -> None:
    """What has happened to a guest.

    Events of all names, or of those that match PATTERNS ('drive.*').
    """
    names = list(patterns) or ["*"]
    with place.connect(name) as client:
        if not follow:
            for event in client.call("events.history", {"names": names}):
                _emit_event(event)
            return
        client.call("events.subscribe", {"names": names, "since": 0})
        try:
            for method, params in client.notifications():
                if method == "event":
                    _emit_event(params)
        except KeyboardInterrupt:
            return


def _emit_event(event: dict[str, Any]) -> None:
    fields = " ".join(f"{key}={_brief(value)}" for key, value in event["data"].items())
    emit(event, f"{moment(event['time'])} {event['seq']:>5} {event['name']} {fields}".rstrip())
    sys.stdout.flush()


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)


@click.command()
@click.argument("name")
@click.argument("method")
@click.argument("params", nargs=-1, metavar="[KEY=VALUE...|-]")
@json_option
@click.pass_obj
def call(place: RunDir, name: str, method: str, params: tuple[str, ...]) -> None:
    """Call a method of a guest's RPC API.

    rpc.discover lists them. A VALUE is JSON if it can be read so, else a text; - reads all parameters as a
    JSON object from stdin.
    """
    fields = _read_params() if params == ("-",) else dict(_pair(param) for param in params)
    with place.connect(name) as client:
        result = client.call(method, fields)
    emit(result, json.dumps(result, indent=2, ensure_ascii=False))


def _read_params() -> dict[str, Any]:
    try:
        fields = json.load(sys.stdin)
    except ValueError as fault:
        raise Failure(f"the parameters on stdin are no JSON: {fault}.", USAGE) from None
    if not isinstance(fields, dict):
        raise Failure("the parameters on stdin must be a JSON object.", USAGE)
    return fields


def _pair(param: str) -> tuple[str, Any]:
    key, equals, value = param.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{param!r} is no KEY=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
