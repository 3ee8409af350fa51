"""fd add, list and remove: images that are opened with the caller's rights, for a daemon that has fewer."""

from __future__ import annotations

import os
import stat

import click

from xenpvd.ctl.completion import descriptors, guest_argument
from xenpvd.ctl.output import Failure, Verbs, emit, json_option, size, table
from xenpvd.ctl.rundir import RunDir


@click.group(cls=Verbs)
def fd() -> None:
    """Images given to a guest's daemon as open files, where it may not open them itself."""


@fd.command("list")
@guest_argument
@json_option
@click.pass_obj
def list_(place: RunDir, name: str) -> None:
    """What the daemon was given, at its start and since; a disk's target is fd:FD.

    PATH is where it lies now, as the host's kernel knows it.
    """
    with place.connect(name) as client:
        found = client.call("fd.list")
    rows = (
        (
            each["name"],
            each["kind"],
            each["access"],
            size(each["size"]),
            " ".join(each["drives"]) or "-",
            each.get("path") or "-",
        )
        for each in found
    )
    emit(found, table(("FD", "KIND", "ACCESS", "SIZE", "DRIVES", "PATH"), rows))


@fd.command()
@guest_argument
@click.argument("fd")
@click.argument("path", type=click.Path())
@click.option("--ro", is_flag=True, help="Open it for reading only.")
@json_option
@click.pass_obj
def add(place: RunDir, name: str, fd: str, path: str, ro: bool) -> None:
    """Open PATH, an image file or a block device, and give it to the daemon as FD.

    It is opened with your rights, so it may lie where the daemon's own do not reach. Then: drive add NAME
    VDEV fd:FD.
    """
    opened = _open(path, ro)
    try:
        with place.connect(name) as client:
            added = client.call("fd.add", {"name": fd}, fd=opened)
    finally:
        os.close(opened)
    is_ = f"{fd} is {path}, {added['descriptor']['access']}"
    emit(added, is_ if added["changed"] else f"{is_}, and was so already")


@fd.command()
@guest_argument
@click.argument("fd", shell_complete=descriptors)
@click.option("--missing-ok", is_flag=True, help="It is no fault if there is none.")
@json_option
@click.pass_obj
def remove(place: RunDir, name: str, fd: str, missing_ok: bool) -> None:
    """Have the daemon close FD; no disk may be on it."""
    with place.connect(name) as client:
        done = client.call("fd.remove", {"name": fd, "missing_ok": missing_ok})
    emit(done, f"{fd} removed" if done["removed"] else f"there was no {fd}")


def _open(path: str, ro: bool) -> int:
    """A block device that the guest may write is claimed, or the host could mount it meanwhile (O_EXCL)."""
    flags = (os.O_RDONLY if ro else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        if not ro and stat.S_ISBLK(os.stat(path).st_mode):  # noqa: PTH116
            flags |= os.O_EXCL
        return os.open(path, flags)
    except OSError as fault:
        raise Failure(f"cannot open {path}: {fault.strerror}. Check the path and your rights.") from None
