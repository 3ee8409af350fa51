"""reload, quit, daemon-log, log-level: a guest's daemon itself; its log is not the guest's console."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.options import lines_option
from xenpvd.ctl.output import emit, json_option, moment, plain
from xenpvd.ctl.rundir import RunDir
from xenpvd.ctl.waiting import told

_LEVELS = ["debug", "info", "warning", "error"]


@click.command()
@guest_argument
@json_option
@click.pass_obj
def reload(place: RunDir, name: str) -> None:
    """Have a guest's daemon read its definition's file anew.

    What may change while the guest runs counts at once; the rest waits for its next start, for which a reboot
    does not count, or for a new daemon. Log files are opened anew, too.
    """
    with place.connect(name) as client:
        done = client.call("daemon.reload")
    rows = (
        ("applied", done["applied"]),
        ("at the next start", done["next_start"]),
        ("with a new daemon", done.get("next_daemon")),
    )
    lines = [f"{label}: {', '.join(found)}" for label, found in rows if found]
    emit(done, lines or "nothing has changed")


@click.command("quit")
@guest_argument
@click.option("--shutdown", "guest", flag_value="shutdown", help="Ask the guest to shut down first.")
@click.option("--destroy", "guest", flag_value="destroy", help="End the guest at once, too.")
@json_option
@click.pass_obj
def quit_(place: RunDir, name: str, guest: str | None) -> None:
    """End a guest's daemon, and wait until it has.

    While there is a guest it refuses, unless it is told what becomes of it.
    """
    with place.connect(name) as client, told(f"the daemon of {name} ends; that cannot be taken back."):
        done = client.call("daemon.quit", {"guest": guest or "fail"})
        for _ in client.notifications():  # until the connection ends
            pass
        with suppress(OSError), place.lock(name).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # it is let go last: the name is free then
    emit(done, f"the daemon of {name} has ended")


@click.command("daemon-log")
@guest_argument
@lines_option(100, 1000, "The newest N.")
@click.option("--level", type=click.Choice(_LEVELS), default="debug", help="Of this level and above.")
@click.option("--logger", default="", metavar="LOGGER", help="Of LOGGER and those below it, as xenpvd.rpc.")
@json_option
@click.pass_obj
def daemon_log(place: RunDir, name: str, lines: int, level: str, logger: str) -> None:
    """What a guest's daemon has logged last.

    The guest's own output is on its console: log.
    """
    with place.connect(name) as client:
        records = client.call("log.tail", {"max": lines, "level": level, "logger": logger})
    emit(records, _lines(records))


def _lines(records: list[dict[str, Any]]) -> Iterator[str]:
    for each in records:
        yield f"{moment(each['time'])} {each['level']:<7} {each['logger']}: {plain(each['message'])}"


@click.command("log-level")
@guest_argument
@click.argument("level", type=click.Choice([*_LEVELS, "inherit"]))
@click.argument("logger", default="")
@json_option
@click.pass_obj
def log_level(place: RunDir, name: str, level: str, logger: str) -> None:
    """How much a guest's daemon logs from now on.

    LOGGER is a part of it, as xenpvd.backends; left out: all, but for parts that have a level of their own.
    inherit takes a part's own level away again. The daemon begins with that of its option --log-level.
    """
    with place.connect(name) as client:
        done = client.call("log.set_level", {"level": level, "logger": logger})
    emit(done, f"{name} logs {level}{f' of {logger}' if logger else ''}")
