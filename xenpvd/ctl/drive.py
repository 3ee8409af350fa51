"""drive add, remove, list, resize, limit, flush, swap and eject."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from xenpvd.ctl.completion import drive_argument, guest_argument, targets
from xenpvd.ctl.guest import drive_line
from xenpvd.ctl.options import apart, no_wait_option
from xenpvd.ctl.output import Verbs, emit, json_option, size, table
from xenpvd.ctl.rundir import RunDir
from xenpvd.ctl.waiting import timeout_option
from xenpvd.paths import BY_DESCRIPTOR, REMOTE

CACHES = ["writeback", "writethrough", "none", "directsync"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: Seconds
BURST = 1.0


def limit_options(command: _Command) -> _Command:
    for option in (
        click.option("--burst", default=BURST, show_default=True, help="Seconds of both saved up when idle."),
        click.option("--ops", default=0, help="Requests in a second; 0: no limit."),
        click.option(
            "--bytes", "rate", default="0", metavar="SIZE", help="In a second, as 10M; 0: no limit."
        ),
    ):
        command = option(command)
    return command


@click.group(cls=Verbs)
def drive() -> None:
    """A guest's disks: add, change and remove them while it runs."""


@drive.command("list")
@guest_argument
@json_option
@click.pass_obj
def list_(place: RunDir, name: str) -> None:
    """The disks, and what both ends say."""
    with place.connect(name) as client:
        drives = client.call("drive.list")
    rows = (
        (
            each["vdev"],
            each["access"],
            size(each["size"]),
            each["state"],
            each["frontend_state"],
            each["cache"],
            (each["plane"] or "-").partition(",")[0].partition(":")[0],
            _limits(each["limits"]) or "-",
            each["target"] + (f": {each['error']}" if each["error"] else ""),
        )
        for each in drives
    )
    emit(
        drives,
        table(("VDEV", "ACCESS", "SIZE", "STATE", "GUEST", "CACHE", "PLANE", "LIMITS", "TARGET"), rows),
    )


@drive.command()
@guest_argument
@click.argument("vdev")
@click.argument("target", type=click.Path(), required=False, shell_complete=targets)
@click.option("--ro", is_flag=True, help="Read-only.")
@click.option("--cdrom", is_flag=True, help="A CD-ROM: read-only, and without TARGET empty.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]),
    default="raw",
    show_default=True,
    help="Of the image.",
)
@click.option("--sector-size", type=click.Choice(["512", "4096"]), default="512", help="Of a logical sector.")
@click.option(
    "--cache", type=click.Choice(CACHES), default=CACHES[0], help="The host's; none and directsync: O_DIRECT."
)
@click.option("--no-discard", is_flag=True, help="Do not offer to give storage back.")
@click.option("--persistent", is_flag=True, help="Offer persistent grants.")
@limit_options
@no_wait_option("connected")
@timeout_option(30.0, "that")
@json_option
@apart("--no-wait", "--timeout")
@click.pass_obj
def add(
    place: RunDir,
    name: str,
    vdev: str,
    target: str | None,
    ro: bool,
    cdrom: bool,
    form: str,
    sector_size: str,
    cache: str,
    no_discard: bool,
    persistent: bool,
    rate: str,
    ops: int,
    burst: float,
    no_wait: bool,
    timeout: float,
) -> None:
    """Attach TARGET, an image file, a block device, fd:NAME (see fd add) or nbd://HOST/EXPORT, as VDEV
    (xvdb)."""
    params = {
        "vdev": vdev,
        "target": _absolute(target),
        "device": "cdrom" if cdrom else "disk",
        "access": "ro" if ro else "rw",
        "format": form,
        "sector_size": int(sector_size),
        "cache": cache,
        "discard": not no_discard,
        "persistent": persistent,
        "limits": _asked(rate, ops, burst),
        "wait": not no_wait,
        "timeout": timeout,
    }
    with place.connect(name) as client:
        added = client.call("drive.add", params)
    if not added["changed"]:
        said = f"{vdev} was there already: {drive_line(added['drive'])}"
    elif added["connected_ms"] is None:
        said = f"{vdev} added"
    else:
        said = f"{vdev} connected in {added['connected_ms']:.0f} ms"
    emit(added, said)


@drive.command()
@guest_argument
@drive_argument
@click.option("--force", is_flag=True, help="Cut it off though the guest still uses it.")
@click.option("--missing-ok", is_flag=True, help="It is no fault if there is none.")
@timeout_option(10.0)
@json_option
@click.pass_obj
def remove(place: RunDir, name: str, vdev: str, force: bool, missing_ok: bool, timeout: float) -> None:
    """Detach VDEV; ends when the guest has let go of it."""
    params = {"vdev": vdev, "force": force, "missing_ok": missing_ok, "timeout": timeout}
    with place.connect(name) as client:
        done = client.call("drive.remove", params)
    emit(done, f"{vdev} removed" if done["removed"] else f"there was no {vdev}")


@drive.command()
@guest_argument
@drive_argument
@click.argument("new_size", metavar="[SIZE]", required=False)
@click.option("--shrink", is_flag=True, help="It may become smaller; what is beyond is lost.")
@json_option
@click.pass_obj
def resize(place: RunDir, name: str, vdev: str, new_size: str | None, shrink: bool) -> None:
    """Have the guest see VDEV's new size: SIZE (as 20G), or what its image has become."""
    params = {"vdev": vdev, "size": None if new_size is None else _bytes(new_size), "shrink": shrink}
    with place.connect(name) as client:
        told = client.call("drive.resize", params)
    emit(told, f"{vdev} has {size(told['size'])}")


@drive.command()
@guest_argument
@drive_argument
@limit_options
@json_option
@click.pass_obj
def limit(place: RunDir, name: str, vdev: str, rate: str, ops: int, burst: float) -> None:
    """Limit what VDEV may use of its storage; with no options it is unlimited again."""
    params = {"vdev": vdev, **_asked(rate, ops, burst)}
    with place.connect(name) as client:
        told = client.call("drive.set_limits", params)
    emit(told, f"{vdev} has {_limits(told['limits']) or 'no limits'}")


@drive.command()
@guest_argument
@drive_argument
@json_option
@click.pass_obj
def flush(place: RunDir, name: str, vdev: str) -> None:
    """Have all that was written to VDEV on stable storage."""
    with place.connect(name) as client:
        client.call("drive.flush", {"vdev": vdev})
    emit({"vdev": vdev}, f"{vdev} is flushed")


@drive.command()
@guest_argument
@drive_argument
@click.argument("target", type=click.Path(), shell_complete=targets)
@json_option
@click.pass_obj
def swap(place: RunDir, name: str, vdev: str, target: str) -> None:
    """Put TARGET, a copy of its image, behind VDEV while the guest goes on; or another disc into a CD-ROM."""
    _swap(place, name, vdev, _absolute(target))


@drive.command()
@guest_argument
@drive_argument
@json_option
@click.pass_obj
def eject(place: RunDir, name: str, vdev: str) -> None:
    """Take out what lies in the CD-ROM VDEV."""
    _swap(place, name, vdev, "")


def _swap(place: RunDir, name: str, vdev: str, target: str) -> None:
    with place.connect(name) as client:
        told = client.call("drive.swap", {"vdev": vdev, "target": target})
    emit(told, f"{vdev} is {told['target']} now" if told["target"] else f"{vdev} is empty")


def _asked(rate: str, ops: int, burst: float) -> dict[str, Any]:
    limits = {"bytes_per_second": _bytes(rate), "ops_per_second": ops, "burst": burst}
    if burst != BURST and not limits["bytes_per_second"] and not ops:
        raise click.UsageError("--burst alone limits nothing. Give --bytes or --ops, too.")
    return limits


def _limits(limits: dict[str, Any]) -> str:
    words = [f"{size(limits['bytes_per_second'])}/s"] if limits["bytes_per_second"] else []
    words += [f"{limits['ops_per_second']} requests/s"] if limits["ops_per_second"] else []
    return ", ".join(words)


def _absolute(target: str | None) -> str:
    if not target or target.startswith((BY_DESCRIPTOR, *REMOTE)):
        return target or ""
    return str(Path(target).absolute())


def _bytes(text: str) -> int:
    number, unit = text.upper().removesuffix("IB"), 1
    if number[-1:] in ("K", "M", "G", "T"):
        number, unit = number[:-1], 1 << 10 * ("KMGT".index(number[-1]) + 1)
    if not number.isdecimal():
        raise click.UsageError(f"{text}: a size is wanted, as 20G or in bytes.")
    return int(number) * unit
