"""evtchn, grant, hypercalls: what goes on between a guest and the outer Xen."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import click

from xenpvd.ctl.completion import guest_argument, ports
from xenpvd.ctl.output import Verbs, emit, json_option, table
from xenpvd.ctl.rundir import RunDir


@click.group(cls=Verbs)
def evtchn() -> None:
    """A guest's event-channel ports."""


@evtchn.command("list")
@guest_argument
@json_option
@click.pass_obj
def list_ports(place: RunDir, name: str) -> None:
    """What each is bound to, and whether an event waits."""
    with place.connect(name) as client:
        ports = client.call("evtchn.list")
    rows = (
        (
            each["port"],
            each["vcpu"],
            each["type"],
            each["remote-domain"] or "-",
            each["target"] if each["type"] in ("interdomain", "virq", "pirq") else "-",
            _flags(each, "pending", "masked"),
        )
        for each in ports
    )
    head = ("PORT", "VCPU", "TYPE", "REMOTE", "TARGET", "FLAGS")
    emit(ports, table(head, rows, right=("PORT", "VCPU", "REMOTE", "TARGET")))


@evtchn.command()
@guest_argument
@click.argument("port", type=int, shell_complete=ports)
@json_option
@click.pass_obj
def inject(place: RunDir, name: str, port: int) -> None:
    """Raise an event on PORT, as one that was lost."""
    with place.connect(name) as client:
        done = client.call("evtchn.inject", {"port": port})
    masked = "; the guest has it masked" if done["masked"] else ""
    emit(done, f"event raised on port {port} ({done['type']}, vCPU {done['vcpu']}){masked}")


@click.group(cls=Verbs)
def grant() -> None:
    """What a guest shares with its backends."""


@grant.command("list")
@guest_argument
@json_option
@click.pass_obj
def list_grants(place: RunDir, name: str) -> None:
    """What it grants, and what of it is in use."""
    with place.connect(name) as client:
        grants = client.call("grant.list")
    rows = (
        (
            each["gref"],
            each["domid"],
            f"{each['frame']:x}",
            "ro" if each["readonly"] else "rw",
            _flags(each, "reading", "writing"),
            each["maps"],
        )
        for each in grants
    )
    head = ("GREF", "DOMID", "FRAME", "ACCESS", "IN USE", "MAPS")
    emit(grants, table(head, rows, right=("GREF", "DOMID", "FRAME", "MAPS")))


@click.command()
@guest_argument
@click.option(
    "-n",
    "--recent",
    type=click.IntRange(0, 256),
    default=0,
    metavar="N",
    help="The newest N calls as well, decoded.",
)
@json_option
@click.pass_obj
def hypercalls(place: RunDir, name: str, recent: int) -> None:
    """What a guest has asked of the outer Xen.

    The hypercalls that left the VM since its boot, by operation and outcome.
    """
    with place.connect(name) as client:
        stats = client.call("hypercall.stats", {"recent": recent})
    lines = [
        f"hypercalls: {stats['total']}",
        f"exits:      {', '.join(f'{kind} {count}' for kind, count in stats['exits'].items()) or '-'}",
        "",
        *table(
            ("OPERATION", "COUNT", "FAILED"),
            ((each["name"], each["count"], _failures(each["results"])) for each in stats["counts"]),
            right=("COUNT",),
        ),
    ]
    if stats["recent"]:
        lines += ["", *_recent(stats["recent"])]
    emit(stats, lines)


def _failures(results: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in results.items() if word != "ok") or "-"


def _recent(calls: list[dict[str, Any]]) -> Iterator[str]:
    rows = (
        (
            each["seq"],
            each["vcpu"],
            each["name"],
            _result(each["result"]),
            " ".join(f"{value:x}" for value in each["args"]),
        )
        for each in calls
    )
    return table(("SEQ", "VCPU", "OPERATION", "RESULT", "ARGUMENTS"), rows, right=("SEQ", "VCPU"))


def _result(rax: int) -> str:
    """A number, or the error's name: Xen's numbers are Linux's."""
    if rax < 0:
        return errno.errorcode.get(-rax, str(rax))
    return f"{rax:#x}" if rax > 9 else str(rax)


def _flags(each: dict[str, Any], *names: str) -> str:
    return " ".join(name for name in names if each[name]) or "-"
