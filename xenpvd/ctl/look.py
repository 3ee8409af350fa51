"""events, call: what goes on in a guest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import click

from xenpvd.ctl import completion
from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.output import USAGE, Failure, emit, json_option, moment
from xenpvd.ctl.rundir import RunDir


@click.command()
@guest_argument
@click.argument("patterns", nargs=-1, shell_complete=completion.events)
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
        for method, params in client.notifications():
            if method == "event":
                _emit_event(params)


def _emit_event(event: dict[str, Any]) -> None:
    told = ((key, value) for key, value in event["data"].items() if value is not None)
    fields = " ".join(f"{key}={_brief(value)}" for key, value in told)
    emit(event, f"{moment(event['time'])} {event['seq']:>5} {event['name']} {fields}".rstrip())
    sys.stdout.flush()


def _brief(value: Any) -> str:
    """A word, or JSON; what is no text is JSON anyhow."""
    plain = isinstance(value, str) and value.isprintable() and " " not in value and value
    return plain or json.dumps(value, separators=(",", ":"))


@click.command()
@guest_argument
@click.argument("method", shell_complete=completion.methods)
@click.argument("params", nargs=-1, metavar="[KEY=VALUE...|-]")
@json_option
@click.pass_obj
def call(place: RunDir, name: str, method: str, params: tuple[str, ...]) -> None:
    """Call a method of a guest's RPC API.

    rpc.discover lists them. A VALUE is JSON if it can be read so, else a text; - reads all parameters as a
    JSON object from stdin.
    """
    fields = _read_params() if params == ("-",) else _pairs(params)
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


def _pairs(params: Iterable[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for param in params:
        key, equals, value = param.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{param!r} is no KEY=VALUE.")
        if key in fields:
            raise click.UsageError(f"{key} is given twice. Give it once.")
        try:
            fields[key] = json.loads(value)
        except ValueError:
            fields[key] = value
    return fields
