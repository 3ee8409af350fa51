"""job: what goes on behind calls that are answered; and following one to its end."""

from __future__ import annotations

import sys
from typing import Any

import click

from xenpvd.ctl.client import Client, RpcFault
from xenpvd.ctl.completion import guest_argument, jobs
from xenpvd.ctl.output import INTERRUPTED, Failure, Verbs, emit, json_option, moment, size, table
from xenpvd.ctl.rundir import RunDir
from xenpvd.ctl.waiting import timeout_option

#: Seconds between two looks at its progress
LOOK = 0.5

_job_argument = click.argument("number", metavar="JOB", type=int, shell_complete=jobs)


@click.group(cls=Verbs)
def job() -> None:
    """Work that a guest's daemon does behind calls, as dump."""


@job.command("list")
@guest_argument
@json_option
@click.pass_obj
def list_(place: RunDir, name: str) -> None:
    """Jobs that go on, and the last ones that are over."""
    with place.connect(name) as client:
        found = client.call("job.list")
    rows = ((each["job"], each["kind"], each["state"], far(each), moment(each["begun"])) for each in found)
    emit(found, table(("JOB", "KIND", "STATE", "PROGRESS", "BEGUN"), rows, right=("JOB",)))


@job.command()
@guest_argument
@_job_argument
@json_option
@click.pass_obj
def wait(place: RunDir, name: str, number: int) -> None:
    """Wait until a job is over, and tell how it ended. ^C lets it go on."""
    with place.connect(name) as client:
        over = _until_over(client, number)
    if over["error"]:
        raise fault_of(over)
    emit(over, _outcome(over))


@job.command()
@guest_argument
@_job_argument
@timeout_option(10.0)
@json_option
@click.pass_obj
def cancel(place: RunDir, name: str, number: int, timeout: float) -> None:
    """Give a job up; what it has made is removed."""
    with place.connect(name) as client:
        over = client.call("job.cancel", {"job": number, "timeout": timeout})
    if over["state"] != "cancelled":
        raise Failure(f"too late: {_outcome(over)}.")
    emit(over, _outcome(over))


def follow(client: Client, number: int) -> dict[str, Any]:
    """The job once it is done; ^C cancels it. Raises :class:`RpcFault` if it fails, :class:`Failure` if it is
    cancelled."""
    try:
        over = _until_over(client, number)
    except KeyboardInterrupt:
        over = client.call("job.cancel", {"job": number})
        too_late = "" if over["state"] == "cancelled" else ", too late to cancel it"
        raise Failure(f"interrupted: {_outcome(over)}{too_late}.", INTERRUPTED) from None
    if over["error"]:
        raise fault_of(over)
    if over["state"] != "done":
        raise Failure(f"{_outcome(over)}.")
    return over


def _until_over(client: Client, number: int) -> dict[str, Any]:
    """On a terminal stderr tells how far it is."""
    told = False
    try:
        while True:
            try:
                over: dict[str, Any] = client.call("job.wait", {"job": number, "timeout": LOOK})
                return over
            except RpcFault as fault:
                if fault.data.get("reason") != "TIMEOUT":
                    raise
            if sys.stderr.isatty():
                print(f"\r{far(client.call('job.get', {'job': number}))}\x1b[K", end="", file=sys.stderr)
                told = True
    finally:
        if told:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def fault_of(over: dict[str, Any]) -> RpcFault:
    """Why it has failed."""
    error = over["error"]
    return RpcFault(error["code"], error["message"], error["data"])


def far(job: dict[str, Any]) -> str:
    """How far it is."""
    done, total, unit = (job["progress"][key] for key in ("done", "total", "unit"))
    return f"{size(done)} of {size(total)}" if unit == "bytes" else f"{done} of {total} {unit}"


def _outcome(over: dict[str, Any]) -> str:
    why = f": {over['error']['message'].rstrip('.')}" if over["error"] else ""
    return f"job {over['job']} ({over['kind']}) is {over['state']}{why}"
