"""What is counted, for Prometheus: its text format 0.0.4 (prometheus.io, "Exposition formats").

No label takes values without an end: there are as many series as the guest has disks, consoles and vCPUs, and
as there are methods, operations and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from xenpvd.figures import GuestStats, Histogram
from xenpvd.views import Runstate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[object, ...]
Sample = tuple[Labels, float | Histogram]


class Family(NamedTuple):
    """One metric: ``samples`` gives the values of ``labels`` and the number of each series."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[GuestStats], Iterable[Sample]]


def _one(get: Callable[[GuestStats], float | Histogram | None]) -> Callable[[GuestStats], Iterable[Sample]]:
    def samples(stats: GuestStats) -> Iterator[Sample]:
        if (value := get(stats)) is not None:
            yield (), value

    return samples


FAMILIES = (
    Family("xenpvd_info", "gauge", "Always 1.", ("version",), lambda s: [((s.version,), 1)]),
    # ---- the guest
    Family(
        "xenpvd_guest_state", "gauge", "1 for the state that the guest is in, 0 for the others.", ("state",),
        lambda s: (((state,), state is s.state) for state in Runstate),
    ),
    Family(
        "xenpvd_guest_uptime_seconds", "gauge", "Since this VM's begin; missing where there is none.", (),
        _one(lambda s: s.uptime),
    ),
    Family(
        "xenpvd_guest_boots_total", "counter", "VMs begun: by start, reboot, reset, restart.", (),
        _one(lambda s: s.boots),
    ),
    Family(
        "xenpvd_guest_boot_phase_seconds", "gauge", "When this VM's boot came to the phase.", ("phase",),
        lambda s: (((phase,), seconds) for phase, seconds in s.boot_times.items()),
    ),
    Family(
        "xenpvd_memory_bytes", "gauge", "The VM's RAM, what was given back included.", (),
        _one(lambda s: s.memory.ram if s.memory else None),
    ),
    Family(
        "xenpvd_memory_ballooned_bytes", "gauge", "RAM that the guest has given back.", (),
        _one(lambda s: s.memory.ballooned if s.memory else None),
    ),
    Family(
        "xenpvd_memory_resident_bytes", "gauge", "What the host holds for the guest's memory.", (),
        _one(lambda s: s.memory.resident if s.memory else None),
    ),
    # ---- vCPUs and the outer Xen
    Family(
        "xenpvd_vcpu_online", "gauge", "Whether the guest uses the vCPU.", ("vcpu",),
        lambda s: (((vcpu.id,), vcpu.online) for vcpu in s.vcpus),
    ),
    Family(
        "xenpvd_vcpu_cpu_seconds_total", "counter", "What the vCPU's thread has run.", ("vcpu",),
        lambda s: (((vcpu.id,), vcpu.cpu_seconds) for vcpu in s.vcpus),
    ),
    Family(
        "xenpvd_vcpu_steal_seconds_total", "counter", "What it had to wait for a CPU of the host.", ("vcpu",),
        lambda s: (((vcpu.id,), vcpu.waited_seconds) for vcpu in s.vcpus),
    ),
    Family(
        "xenpvd_vcpu_exits_total", "counter", "Exits of KVM that came to the daemon.", ("vcpu", "kind"),
        lambda s: (((vcpu.id, kind), n) for vcpu in s.vcpus for kind, n in vcpu.exits.items()),
    ),
    Family(
        "xenpvd_hypercalls_total", "counter",
        "Hypercalls that came to the daemon; the result is ok or an errno.", ("operation", "result"),
        lambda s: (((each.name, result), n) for each in s.hypercalls for result, n in each.results.items()),
    ),
    Family(
        "xenpvd_event_channel_ports", "gauge", "The guest's event-channel ports in use.", ("type",),
        lambda s: (((type_,), n) for type_, n in s.ports.items()),
    ),
    Family(
        "xenpvd_grants_mapped", "gauge",
        "Grants that back ends have mapped; the native data plane's passing ones are not counted.", (),
        _one(lambda s: s.grants_mapped),
    ),
    Family(
        "xenpvd_xen_log_lost_bytes_total", "counter", "Of the shim's log: it wrote faster than it was read.",
        (), _one(lambda s: s.xen_log_lost),
    ),
    # ---- disks
    Family(
        "xenpvd_disk_requests_total", "counter", "Requests that were carried out.", ("vdev", "operation"),
        lambda s: (((d.vdev, operation), n) for d in s.drives for operation, n in d.requests.items()),
    ),
    Family(
        "xenpvd_disk_bytes_total", "counter", "Bytes that were read and written.", ("vdev", "operation"),
        lambda s: (((d.vdev, operation), n) for d in s.drives for operation, n in d.bytes.items()),
    ),
    Family(
        "xenpvd_disk_errors_total", "counter", "Requests that failed or were refused.", ("vdev",),
        lambda s: (((d.vdev,), d.errors) for d in s.drives),
    ),
    Family(
        "xenpvd_disk_throttled_total", "counter", "Requests that waited for the disk's limits.", ("vdev",),
        lambda s: (((d.vdev,), d.throttled) for d in s.drives),
    ),
    Family(
        "xenpvd_disk_requests_in_flight", "gauge", "Requests that are under way.", ("vdev",),
        lambda s: (((d.vdev,), d.in_flight) for d in s.drives),
    ),
    Family(
        "xenpvd_disk_request_duration_seconds", "histogram",
        "From taking a request to its response, failed ones included.", ("vdev",),
        lambda s: (((d.vdev,), d.latency) for d in s.drives),
    ),
    # ---- consoles
    Family(
        "xenpvd_console_output_bytes_total", "counter", "What the guest printed.", ("console",),
        lambda s: (((c.console,), c.output) for c in s.consoles),
    ),
    Family(
        "xenpvd_console_input_bytes_total", "counter", "What was typed and the guest took.", ("console",),
        lambda s: (((c.console,), c.input) for c in s.consoles),
    ),
    Family(
        "xenpvd_console_viewers", "gauge", "Those attached.", ("console",),
        lambda s: (((c.console,), c.viewers) for c in s.consoles),
    ),
    Family(
        "xenpvd_console_log_lost_bytes_total", "counter", "Output that is missing in the log file.",
        ("console",), lambda s: (((c.console,), c.log_lost) for c in s.consoles),
    ),
    # ---- xenstore
    Family(
        "xenpvd_xenstore_requests_total", "counter",
        "Requests of all clients, with XS_ERROR's name or OK; a conflict is TRANSACTION_END's EAGAIN.",
        ("operation", "result"),
        lambda s: (((each.operation, each.result), each.count) for each in s.xenstore.requests),
    ),
    Family(
        "xenpvd_xenstore_watch_events_total", "counter", "Watch events that were sent.", (),
        _one(lambda s: s.xenstore.watch_events),
    ),
    Family(
        "xenpvd_xenstore_connections", "gauge", "Connections, the guest's and the daemon's own included.", (),
        _one(lambda s: s.xenstore.connections),
    ),
    Family("xenpvd_xenstore_nodes", "gauge", "Nodes of all owners.", (), _one(lambda s: s.xenstore.nodes)),
    Family(
        "xenpvd_xenstore_quota_used", "gauge", "What the guest has taken of a quota.", ("quota",),
        lambda s: (((q.name,), q.used) for q in s.xenstore.quotas if q.used is not None),
    ),
    Family(
        "xenpvd_xenstore_quota_limit", "gauge", "How much it may take; 0 is no limit.", ("quota",),
        lambda s: (((q.name,), q.limit) for q in s.xenstore.quotas if q.used is not None),
    ),
    # ---- the daemon
    Family(
        "xenpvd_rpc_clients", "gauge", "Clients of rpc.sock.", (), _one(lambda s: s.rpc.connected)
    ),
    Family(
        "xenpvd_rpc_connections_total", "counter", "Clients of rpc.sock so far.", (),
        _one(lambda s: s.rpc.connections),
    ),
    Family(
        "xenpvd_rpc_calls_total", "counter",
        "Calls that have ended, by any socket; code 0 is success, method none was none of ours.",
        ("method", "code"), lambda s: (((each.method, each.code), each.count) for each in s.rpc.calls),
    ),
    Family(
        "xenpvd_events_total", "counter", "Events published.", (), _one(lambda s: s.events.published)
    ),
    Family(
        "xenpvd_events_lost_total", "counter", "Events that a subscriber did not read in time.", (),
        _one(lambda s: s.events.lost),
    ),
    Family(
        "xenpvd_event_subscribers", "gauge", "Those that are sent events.", (),
        _one(lambda s: s.events.subscribers),
    ),
    Family(
        "xenpvd_loop_lag_seconds", "histogram", "How late the event loop came to a timer, once a second.", (),
        _one(lambda s: s.loop_lag),
    ),
    Family(
        "xenpvd_process_start_time_seconds", "gauge", "When the daemon began, in Unix seconds.", (),
        _one(lambda s: s.process.started),
    ),
    Family(
        "xenpvd_process_cpu_seconds_total", "counter", "CPU time of the daemon, its guest's included.", (),
        _one(lambda s: s.process.cpu_seconds),
    ),
    Family(
        "xenpvd_process_resident_memory_bytes", "gauge", "Memory of the daemon, its guest's included.", (),
        _one(lambda s: s.process.resident),
    ),
    Family("xenpvd_process_open_fds", "gauge", "Open descriptors.", (), _one(lambda s: s.process.fds)),
    Family("xenpvd_process_threads", "gauge", "Threads of Python's.", (), _one(lambda s: s.process.threads)),
)  # fmt: skip


def exposition(*guests: GuestStats) -> str:
    """All of :data:`FAMILIES`, each series with the guest's name and the labels of its definition."""
    lines: list[str] = []
    for family in FAMILIES:
        lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
        for stats in guests:
            lines += _series(family, stats)
    return "".join(f"{line}\n" for line in lines)


def _series(family: Family, stats: GuestStats) -> Iterator[str]:
    for values, value in family.samples(stats):
        labels = {"guest": stats.name, **stats.labels, **dict(zip(family.labels, values, strict=True))}
        if isinstance(value, Histogram):
            yield from _histogram(family.name, labels, value)
        else:
            yield _line(family.name, labels, value)


def _histogram(name: str, labels: dict[str, object], value: Histogram) -> Iterator[str]:
    below = 0
    for bound, count in zip((*value.bounds, "+Inf"), value.counts, strict=True):
        below += count
        yield _line(f"{name}_bucket", labels | {"le": bound}, below)
    yield _line(f"{name}_sum", labels, value.sum)
    yield _line(f"{name}_count", labels, below)


def _line(name: str, labels: dict[str, object], value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(str(of))}"' for label, of in labels.items())
    return f"{name}{{{pairs}}} {value + 0}"  # a bool becomes a number


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
