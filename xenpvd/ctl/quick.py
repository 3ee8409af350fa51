"""``xenpvctl run``: a guest that lives as long as its console is watched."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import click

from xenpvd.ctl.client import Client, NoAnswer, RpcFault
from xenpvd.ctl.console import End, converse, ended_by_signals
from xenpvd.ctl.launch import Launched, NotReady
from xenpvd.ctl.output import FAILED, OK, USAGE, Failure
from xenpvd.ctl.rundir import NoGuest, RunDir, misnamed
from xenpvd.paths import NAME

ESCAPE = 0x1D
READY_TIMEOUT = 60.0
SHUTDOWN_TIMEOUT = 30.0
END_TIMEOUT = 10.0

#: Not a file: GRUB, which boots what the disk's menu names.
PVGRUB = "pvgrub"

#: The daemon's exit status if the name is in use.
IN_USE = 3

_VDEV = re.compile(r"(xvd|sd|hd)[a-z][a-z0-9]*")
_FIRST = ("quick", "calm", "bold", "shy", "warm", "odd", "keen", "plain", "brisk", "mild")
_SECOND = ("otter", "heron", "lynx", "toad", "finch", "mole", "hare", "newt", "wren", "carp")


@dataclass(frozen=True)
class Disk:
    target: str
    vdev: str
    access: str = "rw"


@dataclass(frozen=True)
class Wanted:
    """The command line's options."""

    kernel: str
    ramdisk: str | None
    disks: tuple[str, ...]
    memory: int
    vcpus: int
    cmdline: str | None
    name: str | None
    drop_changes: bool
    shim: str
    kind: str = "pv"
    accel: str | None = None


def run(place: RunDir, wanted: Wanted) -> int:
    """Returns the exit status."""
    if wanted.kind == "pvh" and wanted.shim != "auto":
        raise click.UsageError("--type pvh runs without a shim: leave out --shim.")
    name = wanted.name or f"{random.choice(_FIRST)}-{random.choice(_SECOND)}"
    if not NAME.fullmatch(name):
        raise click.UsageError(misnamed(name))
    disks = parse_disks(wanted.disks)
    with suppress(NoGuest), place.connect(name):
        raise Failure(f"{name} is there already. Choose another --name.")
    with tempfile.TemporaryDirectory(
        prefix="xenpvd-run-", dir=os.environ.get("TMPDIR", "/var/tmp")
    ) as scratch:
        with ended_by_signals(again=True):  # a second ^C hurries a guest's shutdown
            if wanted.drop_changes:
                disks = [_copy(disk, Path(scratch)) for disk in disks]
            config = Path(scratch) / f"{name}.toml"
            config.write_text(definition(wanted, name, disks), encoding="utf-8")
            said = f"{name}, {wanted.memory} MiB, {wanted.vcpus} vCPU" + ("s" if wanted.vcpus > 1 else "")
            if wanted.drop_changes:
                said += "; changes to the disks are dropped at the end (-x)"
            click.echo(f"xenpvd: guest {said}", err=True)
            return _live(place, name, config, *(["--accel", wanted.accel] if wanted.accel else []))


def parse_disks(texts: tuple[str, ...]) -> list[Disk]:
    """``FILE[,VDEV][,ro]``; disks without a name get the next of xvda, xvdb…"""
    named: list[tuple[str, str | None, str]] = []
    for text in texts:
        target, vdev, access = text, None, "rw"
        while "," in target:
            head, _, word = target.rpartition(",")
            if word in ("ro", "rw"):
                access = word
            elif _VDEV.fullmatch(word):
                vdev = word
            else:
                break
            target = head
        named.append((_absolute(target), vdev, access))
    taken = {vdev for _, vdev, _ in named}
    free = (f"xvd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" if f"xvd{letter}" not in taken)
    return [Disk(target, vdev or next(free), access) for target, vdev, access in named]


def definition(wanted: Wanted, name: str, disks: list[Disk]) -> str:
    """The guest as TOML. The daemon checks it, in its own words."""
    kernel, cmdline = wanted.kernel, wanted.cmdline
    if kernel == PVGRUB:
        cmdline = cmdline or ""
    else:
        kernel = _absolute(kernel)
    if cmdline is None:
        cmdline = "console=hvc0" + (f" root=/dev/{disks[0].vdev}" if disks else "")
    lines = [
        f"name = {_quote(name)}",
        f"memory = {wanted.memory}",
        f"vcpus = {wanted.vcpus}",
        f"kernel = {_quote(kernel)}",
        f"cmdline = {_quote(cmdline)}",
    ]
    if wanted.ramdisk is not None:
        lines.append(f"ramdisk = {_quote(_absolute(wanted.ramdisk))}")
    if wanted.kind != "pv":
        lines.append(f"type = {_quote(wanted.kind)}")
    if wanted.shim != "auto":
        lines += ["[shim]", f"path = {_quote(_absolute(wanted.shim))}"]
    for disk in disks:
        lines += ["[[disk]]", f"vdev = {_quote(disk.vdev)}", f"target = {_quote(disk.target)}"]
        lines.append(f"access = {_quote(disk.access)}")
    return "\n".join(lines) + "\n"


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _quote(text: str) -> str:
    """A TOML basic string: as JSON's, but DEL is escaped and nothing beyond ASCII is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _copy(disk: Disk, scratch: Path) -> Disk:
    if disk.access == "ro":
        return disk
    copy = scratch / f"{disk.vdev}.img"
    command = ["cp", "--sparse=always", "--reflink=auto", "--", disk.target, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if not Path(disk.target).exists():
            raise Failure(f"cannot copy {disk.target}: this disk is missing. Check --disk.")
        why = done.stderr.strip().removeprefix("cp: ")
        if not os.access(disk.target, os.R_OK):
            raise Failure(f"cannot copy {disk.target}: {why}. Check --disk.")
        raise Failure(f"cannot copy {disk.target}: {why}. TMPDIR says where the copy goes.")
    return replace(disk, target=str(copy))


def _live(place: RunDir, name: str, config: Path, *options: str) -> int:
    """From the daemon's start to its end, which comes whatever happens here."""
    try:
        launched = Launched(place, name, config, *options)
    except OSError as fault:
        place.tidy(name)
        raise Failure(f"cannot start {name}: {fault.filename or place.path}: {fault.strerror}.") from None
    try:
        try:
            launched.wait_ready(READY_TIMEOUT)
            end, crash = _watch(place, name)
        except NotReady as fault:
            raise Failure(str(fault), USAGE if fault.status == 2 else FAILED) from None
        if crash is not None:
            raise Failure(_obituary(name, crash))
        if end is End.CLOSED and (status := launched.wait(END_TIMEOUT)):
            raise Failure(f"the daemon of {name} ended with status {status}:\n{launched.tail()}")
        return OK
    finally:
        _end(place, name, launched)


def _watch(place: RunDir, name: str) -> tuple[End, dict[str, object] | None]:
    """Attach until the guest or the user ends it; with the guest.crash event's data if there was one."""
    crashes: list[dict[str, object]] = []

    def crashed(watcher: Client) -> bool:
        with suppress(NoAnswer):
            crashes.extend(event["data"] for method, event in watcher.arrived() if method == "event")
            return bool(crashes)
        return True

    with place.connect(name) as watcher, place.connect(name) as client:
        watcher.call("events.subscribe", {"names": ["guest.crash"], "since": 0})
        _, sock, pending = client.attach("rw", since=0)
        end = converse(
            sock,
            pending,
            name=f"{name} console",
            escape=ESCAPE,
            until_eof=False,
            watch=watcher.fileno(),
            over=lambda: crashed(watcher),
        )
        crashed(watcher)
    return end, crashes[0] if crashes else None


def _obituary(name: str, crash: dict[str, object]) -> str:
    words = [f"{name} crashed: {crash.get('reason')}: {crash.get('detail') or 'no detail'}"]
    if tail := str(crash.get("xen_tail") or "").rstrip():
        words += ["--- Xen's log, last:", tail]
    return "\n".join(words)


def _end(place: RunDir, name: str, launched: Launched) -> None:
    """Leave no daemon, no copy in use, no log behind."""
    status = launched.wait(0)
    try:
        if status is None:
            with suppress(NoGuest, NoAnswer, RpcFault), place.connect(name) as client:
                if client.call("guest.status")["state"] == "running":
                    print(f"xenpvd: shutting {name} down…", file=sys.stderr, flush=True)
                    params = {"timeout": SHUTDOWN_TIMEOUT, "then": "destroy"}
                    client.call("guest.shutdown", params)
                client.call("daemon.quit", {"guest": "shutdown"})
            status = launched.wait(END_TIMEOUT)
    finally:
        if status is None and launched.end(END_TIMEOUT) is None:
            print(f"xenpvd: the daemon of {name} (pid {launched.pid}) does not end", file=sys.stderr)
        elif launched.wait(0) != IN_USE:
            place.tidy(name, [*launched.spare_log(told=True), place.socket(name)])
        launched.close()
