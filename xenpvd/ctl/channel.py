"""channel add, remove and list: a guest's further consoles."""

from __future__ import annotations

from pathlib import Path

import click

from xenpvd.ctl.completion import channels, guest_argument
from xenpvd.ctl.options import apart, no_wait_option
from xenpvd.ctl.output import Verbs, emit, json_option, table
from xenpvd.ctl.rundir import RunDir
from xenpvd.ctl.waiting import timeout_option


@click.group(cls=Verbs)
def channel() -> None:
    """A guest's consoles: add and remove further ones while it runs (attach: console -c CHANNEL)."""


@channel.command("list")
@guest_argument
@json_option
@click.pass_obj
def list_(place: RunDir, name: str) -> None:
    """All consoles; the guest's own is 0, and xen the log of the Xen below it."""
    with place.connect(name) as client:
        consoles = client.call("console.list")
    rows = (
        (
            each["console"],
            "-" if each["number"] is None else str(each["number"]),
            "connected" if each["connected"] else "-",
            str(each["end"]),
            str(each["viewers"]),
            each["writer"] or "-",
            each["log"] or "-",
        )
        for each in consoles
    )
    emit(consoles, table(("CONSOLE", "NUMBER", "GUEST", "BYTES", "VIEWERS", "KEYBOARD", "LOG"), rows))


@channel.command()
@guest_argument
@click.argument("channel")
@click.option("--number", type=click.IntRange(1, 9), help="Of device/console/N; else a free one.")
@click.option("--shared", is_flag=True, help="Each viewer has a keyboard.")
@click.option("--log", type=click.Path(), metavar="FILE", help="A file that gets the output as well.")
@no_wait_option("connected")
@timeout_option(30.0, "that")
@json_option
@apart("--no-wait", "--timeout")
@click.pass_obj
def add(
    place: RunDir,
    name: str,
    channel: str,
    number: int | None,
    shared: bool,
    log: str | None,
    no_wait: bool,
    timeout: float,
) -> None:
    """Give the guest a further console (hvc1 and so on) called CHANNEL."""
    params = {
        "name": channel,
        "number": number,
        "input": "shared" if shared else "single",
        "log": None if log is None else str(Path(log).absolute()),
        "wait": not no_wait,
        "timeout": timeout,
    }
    with place.connect(name) as client:
        added = client.call("channel.add", params)
    what = f"device/console/{added['console']['number']}"
    emit(added, f"{channel} is {what}" if added["changed"] else f"{channel} was there already, as {what}")


@channel.command()
@guest_argument
@click.argument("channel", shell_complete=channels)
@click.option("--force", is_flag=True, help="Cut it off though the guest still uses it.")
@click.option("--missing-ok", is_flag=True, help="It is no fault if there is none.")
@timeout_option(10.0)
@json_option
@click.pass_obj
def remove(place: RunDir, name: str, channel: str, force: bool, missing_ok: bool, timeout: float) -> None:
    """Take CHANNEL from the guest; its recording ends."""
    params = {"name": channel, "force": force, "missing_ok": missing_ok, "timeout": timeout}
    with place.connect(name) as client:
        done = client.call("channel.remove", params)
    emit(done, f"{channel} removed" if done["removed"] else f"there was no {channel}")
