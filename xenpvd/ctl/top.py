"""top: what all guests are at, second by second."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from xenpvd.ctl import completion
from xenpvd.ctl.client import NoAnswer, RpcFault
from xenpvd.ctl.console import TICK, raw
from xenpvd.ctl.output import emit, json_option, mib, size, table, wants_json
from xenpvd.ctl.rundir import NoGuest, RunDir

#: One daemon that hangs must not hide the others.
ANSWER_TIMEOUT = 1.0

#: A terminal in raw mode makes no signal of ^C, and no end of ^D
_QUIT, _INTERRUPT = frozenset(b"qQ\x04"), b"\x03"
#: What xterm and all that are like it know: its second screen, and the cursor
_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"

_HEAD = ("NAME", "STATE", "CPU%", "MEM", "READ/s", "WRITE/s", "HCALL/s", "CONSOLE/s")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a guest; ``life`` tells when its counters began anew."""

    at: float
    state: str
    life: tuple[float, int] | None = None
    resident: int | None = None
    cpu: float = 0.0
    read: int = 0
    written: int = 0
    hypercalls: int = 0
    console: int = 0

    @classmethod
    def of(cls, stats: dict[str, Any], at: float) -> Sample:
        return cls(
            at,
            stats["state"],
            (stats["process"]["started"], stats["boots"]),
            stats["memory"] and stats["memory"]["resident"],
            sum(vcpu["cpu_seconds"] for vcpu in stats["vcpus"]),
            sum(drive["bytes"]["read"] for drive in stats["drives"]),
            sum(drive["bytes"]["write"] for drive in stats["drives"]),
            sum(each["count"] for each in stats["hypercalls"]),
            sum(console["output"] for console in stats["consoles"]),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """What a guest did between two looks: per second, and null where there was only one. ``cpu_percent`` of
    one CPU of the host; ``resident`` in bytes."""

    name: str
    state: str
    cpu_percent: float | None
    resident: int | None
    read_bytes: float | None
    write_bytes: float | None
    hypercalls: float | None
    console_bytes: float | None

    @classmethod
    def between(cls, name: str, before: Sample | None, now: Sample) -> Row:
        alike = before is not None and now.life is not None and before.life == now.life

        def rate(field: str, scale: float = 1.0) -> float | None:
            if before is None or not alike or now.at <= before.at:
                return None
            # what has ended (a disk that was removed) takes its counts along
            grown: float = max(0, getattr(now, field) - getattr(before, field))
            return round(scale * grown / (now.at - before.at), 1)

        return cls(
            name,
            now.state,
            rate("cpu", 100.0),
            now.resident,
            rate("read"),
            rate("written"),
            rate("hypercalls"),
            rate("console"),
        )

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            self.state,
            "-" if self.cpu_percent is None else f"{self.cpu_percent:.0f}",
            "-" if self.resident is None else mib(self.resident),
            *("-" if rate is None else size(round(rate)) for rate in (self.read_bytes, self.write_bytes)),
            "-" if self.hypercalls is None else f"{self.hypercalls:.0f}",
            "-" if self.console_bytes is None else size(round(self.console_bytes)),
        )


@click.command()
@click.argument("names", nargs=-1, shell_complete=completion.guests)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="One table, of one interval; so it is without a terminal, too.")
@json_option
@click.pass_obj
def top(place: RunDir, names: tuple[str, ...], interval: float, once: bool) -> None:
    """What all guests, or those of these NAMES, are at.

    CPU% is the vCPUs' time, of one CPU of the host; MEM what the host holds for the guest's memory, in MiB.
    Per second: what the disks read and write, the hypercalls that come to the daemon, and what is printed.
    q ends it, any other key looks at once.
    """
    for name in names:  # a word that was mistyped shall not look like a guest that is down
        place.connect(name).close()
    looks = _Looks(place, names)
    looks.next()
    if once or wants_json() or not (sys.stdin.isatty() and sys.stdout.isatty()):
        time.sleep(interval)
        rows = looks.next()
        emit([asdict(row) for row in rows], _table(rows))
        if not names and (unseen := place.unseen()):
            click.echo(f"xenpvctl: {unseen}", err=True)
        return
    with _screen():
        rows = looks.rows
        while True:
            _show(rows)
            if _quit(interval):
                return
            rows = looks.next()


class _Looks:
    def __init__(self, place: RunDir, names: tuple[str, ...]) -> None:
        self._place = place
        self._names = names
        self._before: dict[str, Sample] = {}
        self.rows: list[Row] = []

    def next(self) -> list[Row]:
        samples = {name: _look(self._place, name) for name in self._names or self._place.names()}
        self.rows = [Row.between(name, self._before.get(name), now) for name, now in samples.items()]
        self._before = samples
        return self.rows


def _look(place: RunDir, name: str) -> Sample:
    try:
        with place.connect(name, ANSWER_TIMEOUT) as client:
            stats = client.call("guest.stats", timeout=ANSWER_TIMEOUT)
    except NoGuest:
        state = "dead"
    except (NoAnswer, RpcFault):
        state = "no answer"
    except PermissionError:
        state = "no permission"
    else:
        return Sample.of(stats, time.monotonic())
    return Sample(time.monotonic(), state)


def _table(rows: Iterable[Row]) -> Iterator[str]:
    return table(_HEAD, [row.cells() for row in rows], right=_HEAD[2:])


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, with keys as they are typed; whatever happens, both are as before then."""
    with raw(sys.stdin.fileno()):
        try:
            _put(_BEGIN)
            yield
        finally:
            with contextlib.suppress(OSError):  # the terminal has gone
                _put(_END)


def _show(rows: list[Row]) -> None:
    width, height = shutil.get_terminal_size()  # 80 by 24 where it does not know, as a serial line's
    running = sum(row.state == "running" for row in rows)
    lines = [f"{time.strftime('%H:%M:%S')}  guests: {len(rows)}, running: {running}  (q ends)", ""]
    lines += _table(rows)
    if len(lines) > height > 1:
        lines[height - 1 :] = [f"and {len(lines) - height + 1} more"]
    _put(_HOME + "\r\n".join(line[:width] + _CLEAR_LINE for line in lines) + _CLEAR_BELOW)


def _quit(wait: float) -> bool:
    """Wait for so many seconds, or for a key: is it one that ends it? Raises KeyboardInterrupt for ^C."""
    stdin, until = sys.stdin.fileno(), time.monotonic() + wait
    while not select.select([stdin], [], [], max(0.0, min(TICK, until - time.monotonic())))[0]:
        if time.monotonic() >= until:
            return False
    try:
        keys = os.read(stdin, 64)
    except OSError:  # EIO: the terminal has gone
        keys = b""
    if _INTERRUPT in keys:
        raise KeyboardInterrupt
    return not keys or not _QUIT.isdisjoint(keys)


def _put(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
