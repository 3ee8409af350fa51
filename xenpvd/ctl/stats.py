"""stats: what is counted of a guest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.output import duration, emit, json_option, mib, size, table
from xenpvd.ctl.rundir import RunDir


@click.command()
@guest_argument
@json_option
@click.pass_obj
def stats(place: RunDir, name: str) -> None:
    """What is counted of a guest: its CPUs, memory, disks, consoles.

    With --json all of it, as /metrics of http.sock has it; top shows what goes on now.
    """
    with place.connect(name) as client:
        found = client.call("guest.stats")
    emit(found, _lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    memory, process, xenstore, rpc = found["memory"], found["process"], found["xenstore"], found["rpc"]
    rows = [
        ("state", f"{found['state']}, up {duration(found['uptime'])}, boots {found['boots']}"),
        *((("memory", _memory(memory)),) if memory else ()),
        ("hypercalls", _total(found["hypercalls"], "results")),
        ("ports", ", ".join(f"{type_} {count}" for type_, count in found["ports"].items()) or "-"),
        ("xenstore", f"{sum(each['count'] for each in xenstore['requests'])} requests, "
                     f"{xenstore['watch_events']} events, {xenstore['nodes']} nodes"),
        ("rpc", f"clients {rpc['connected']}, calls {sum(each['count'] for each in rpc['calls'])}"),
        ("loop", _durations(found["loop_lag"], "late")),
        ("daemon", f"{process['cpu_seconds']:.1f} s of CPU, {mib(process['resident'])} MiB resident, "
                   f"{process['fds']} descriptors, {process['threads']} threads"),
    ]  # fmt: skip
    yield from (f"{label + ':':<12}{value}" for label, value in rows)
    if found["vcpus"]:
        yield ""
        yield from table(("VCPU", "ONLINE", "CPU", "STEAL", "EXITS"), map(_vcpu, found["vcpus"]), _NUMBERS)
    if found["drives"]:
        head = ("DISK", "READS", "READ", "WRITES", "WRITTEN", "FLUSHES", "DISCARDS", "ERRORS", "TOOK")
        yield ""
        yield from table(head, map(_drive, found["drives"]), _NUMBERS)
    yield ""
    rows = [
        (each["console"], size(each["output"]), size(each["input"]), each["viewers"], size(each["log_lost"]))
        for each in found["consoles"]
    ]
    yield from table(("CONSOLE", "OUTPUT", "INPUT", "VIEWERS", "LOG LOST"), rows, _NUMBERS)


_NUMBERS = (
    "VCPU", "CPU", "STEAL", "EXITS", "READS", "READ", "WRITES", "WRITTEN", "FLUSHES", "DISCARDS", "ERRORS",
    "OUTPUT", "INPUT", "VIEWERS", "LOG LOST",
)  # fmt: skip


def _memory(memory: dict[str, int]) -> str:
    back = f", {mib(memory['ballooned'])} given back" if memory["ballooned"] else ""
    return f"{mib(memory['ram'])} MiB{back}, {mib(memory['resident'])} resident"


def _total(counts: list[dict[str, Any]], key: str) -> str:
    failed = sum(n for each in counts for result, n in each[key].items() if result != "ok")
    return f"{sum(each['count'] for each in counts)}, {failed} failed"


def _vcpu(vcpu: dict[str, Any]) -> tuple[object, ...]:
    return (
        vcpu["id"],
        "yes" if vcpu["online"] else "no",
        f"{vcpu['cpu_seconds']:.2f} s",
        f"{vcpu['waited_seconds']:.2f} s",
        sum(vcpu["exits"].values()),
    )


def _drive(drive: dict[str, Any]) -> tuple[object, ...]:
    requests, moved = drive["requests"], drive["bytes"]
    return (
        drive["vdev"],
        requests["read"],
        size(moved["read"]),
        requests["write"],
        size(moved["write"]),
        requests["flush"],
        requests["discard"],
        drive["errors"],
        _durations(drive["latency"], ""),
    )


def _durations(histogram: dict[str, Any], what: str) -> str:
    """The mean, and what the slowest took at most."""
    count = sum(histogram["counts"])
    if not count:
        return "-"
    bounds = [_time(bound) for bound in histogram["bounds"]]
    last = max(n for n, each in enumerate(histogram["counts"]) if each)
    most = f"< {bounds[last]}" if last < len(bounds) else f"> {bounds[-1]}"
    return f"{_time(histogram['sum'] / count)} {what}".strip() + f", {most}"


def _time(seconds: float) -> str:
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.0f} {unit}"
    return f"{seconds:.1f} s"
