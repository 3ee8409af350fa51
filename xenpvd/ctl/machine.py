"""vcpu and memory: what a guest has of both, and how much it shall use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.options import apart, no_wait_option
from xenpvd.ctl.output import Verbs, emit, json_option, mib, table
from xenpvd.ctl.rundir import RunDir
from xenpvd.ctl.waiting import timeout_option, told

#: What fits 80 columns.
REGISTERS_PER_LINE = 3


@click.group(cls=Verbs)
def vcpu() -> None:
    """A guest's virtual CPUs."""


@vcpu.command("list")
@guest_argument
@click.option("--regs", is_flag=True, help="The registers as well; each vCPU stops for a moment.")
@json_option
@click.pass_obj
def list_(place: RunDir, name: str, regs: bool) -> None:
    """Which of them the guest uses, and what they do."""
    with place.connect(name) as client:
        up = client.call("guest.status")["phase"] in ("xenbus", "devices")
        vcpus = client.call("vcpu.list", {"regs": regs})
    offline = "no" if up else "-"  # a CPU that is still to be started looks as if it were offline
    rows = (
        (each["id"], "yes" if each["online"] else offline, each["state"], each["exits"]) for each in vcpus
    )
    lines = [*table(("VCPU", "ONLINE", "STATE", "EXITS"), rows, right=("VCPU", "EXITS"))]
    for each in vcpus:
        if each["regs"]:
            lines += ["", f"vCPU {each['id']}", *_registers(each["regs"])]
    emit(vcpus, lines)


def _registers(regs: dict[str, int]) -> Iterator[str]:
    width = max(map(len, regs))
    cells = [f"{name:>{width}} {value:016x}" for name, value in regs.items()]
    for at in range(0, len(cells), REGISTERS_PER_LINE):
        yield "  " + "  ".join(cells[at : at + REGISTERS_PER_LINE])


@vcpu.command("set")
@guest_argument
@click.argument("count", type=int)
@no_wait_option("done")
@timeout_option(30.0, "that")
@json_option
@apart("--no-wait", "--timeout")
@click.pass_obj
def set_vcpus(place: RunDir, name: str, count: int, no_wait: bool, timeout: float) -> None:
    """Have the guest use its first COUNT vCPUs."""
    stays = (
        f"{name} is asked to use {count}, and may still do it. Take it back with: xenpvctl vcpu set {name} N"
    )
    with place.connect(name) as client, told(stays):
        done = client.call("vcpu.set_online", {"count": count, "wait": not no_wait, "timeout": timeout})
    emit(done, _outcome(name, done, f"{count} vCPU{'s' if count > 1 else ''}", f"{len(done['online'])}"))


@click.group(cls=Verbs)
def memory() -> None:
    """A guest's memory, and its balloon."""


@memory.command()
@guest_argument
@json_option
@click.pass_obj
def show(place: RunDir, name: str) -> None:
    """What it has, and what the host holds for it."""
    with place.connect(name) as client:
        info = client.call("memory.info")
    rows = [
        ("ram", f"{mib(info['ram'])} MiB"),
        ("guest", _mib(info["guest"])),
        ("target", _mib(info["target"])),
        ("ballooned", f"{mib(info['ballooned'])} MiB"),
        ("resident", f"{mib(info['resident'])} MiB ({info['pages']})"),
    ]
    lines = [f"{label + ':':<12}{value}" for label, value in rows]
    regions = (
        (each["name"], f"{each['gpa']:016x}", *(mib(each[key]) for key in ("size", "resident", "huge")))
        for each in info["regions"]
    )
    head = ("REGION", "GPA", "MIB", "RESIDENT", "HUGE")
    emit(info, [*lines, "", *table(head, regions, right=head[2:])])


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{mib(count)} MiB"


@memory.command("set")
@guest_argument
@click.argument("size", metavar="MIB", type=int)
@no_wait_option("done")
@timeout_option(60.0, "that")
@json_option
@apart("--no-wait", "--timeout")
@click.pass_obj
def set_memory(place: RunDir, name: str, size: int, no_wait: bool, timeout: float) -> None:
    """Have the guest use so much memory.

    Its balloon gives pages back to the host, or takes them again, until the VM is MIB large.
    """
    stays = f"{name} goes on to {size} MiB. Take it back with: xenpvctl memory set {name} MIB"
    with place.connect(name) as client, told(stays):
        done = client.call("memory.set_target", {"mib": size, "wait": not no_wait, "timeout": timeout})
    emit(done, _outcome(name, done, f"{size} MiB", f"{done['reached_mib']} MiB"))


def _outcome(name: str, done: dict[str, Any], asked: str, now: str) -> str:
    if done["confirmed"] is None:
        return f"{name} is asked to use {asked}; now {now}"
    return f"{name} uses {asked} after {done['confirmed']:.1f} s"
