"""JSON-RPC calls at xenpvd's rpc.sock, beside a bare echo server and QEMU's monitor.

    python -m bench.rpc [--rounds N] [--calls N] [--clients N] [--cpus CLIENT,SERVER]

A daemon without a guest, a server of asyncio streams (on uvloop, too) that sends each line back, which is
the least that such a daemon could do, and, where there is one, QEMU without a machine (``-M none``), whose
monitor serves one client and is asked for query-status instead of daemon.ping. By turns, in the same run.
Each connection has one call at a time, and its replies are held against what was asked: none may be lost, or
come in another's place. Client and servers share a CPU if --cpus does not say otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench import results
from bench.results import Kind, Level, Report
from bench.servers import PING, Connection, Server, cpu

BATCH = 64
#: Calls of each client in a crowd
STAY = 10
CONNECTIONS = (1, 64)


def call(method: str) -> Callable[[int], bytes]:
    return lambda number: b'{"jsonrpc":"2.0","method":"%s","id":%d}' % (method.encode(), number)


def batch(number: int) -> bytes:
    return b"[" + b",".join(call("daemon.ping")(number * BATCH + at) for at in range(BATCH)) + b"]"


def qmp(number: int) -> bytes:
    return b'{"execute":"query-status","id":%d}' % number


#: By name, what is asked, and how many calls it is
ROWS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "daemon.ping": (call("daemon.ping"), 1),
    "guest.status": (call("guest.status"), 1),
    f"batch of {BATCH}": (batch, BATCH),
}


class Figure(NamedTuple):
    """µs of one round: the median and the 99th percentile of a reply's, CPU and wall time of each call."""

    middle: float
    p99: float
    cpu: float
    wall: float


def measure(server: Server, ask: Callable[[int], bytes], count: int, calls: int, connections: int) -> Figure:
    """``count`` messages of ``calls`` calls each over all ``connections``."""
    pool = [Connection(server) for _ in range(connections)]
    by_fd = {one.socket.fileno(): one for one in pool}
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    each = max(count // connections, 1)
    messages = [ask(number) + b"\n" for number in range(each)]
    times: list[float] = []
    busy, used, since = len(pool), cpu(server.pid), time.perf_counter()
    for one in pool:
        one.since = time.perf_counter()
        one.socket.sendall(messages[0])
    while busy:
        for fd, _ in poll.poll():
            one = by_fd[fd]
            if (line := one.take()) is None:
                continue
            now = time.perf_counter()
            times.append(now - one.since)
            one.replies.append(line)
            one.asked += 1
            if one.asked == each:
                busy -= 1
                continue
            one.since = time.perf_counter()
            one.socket.sendall(messages[one.asked])
    wall, used = time.perf_counter() - since, cpu(server.pid) - used
    for one in pool:
        check(one.replies, messages)
        one.close()
    times.sort()
    done = each * connections * calls
    middle, p99 = statistics.median(times), times[len(times) * 99 // 100]
    return Figure(middle * 1e6, p99 * 1e6, used / done, wall * 1e6 / done)


def check(replies: list[bytes], messages: list[bytes]) -> None:
    """A reply for each, in their order, and no error."""
    assert len(replies) == len(messages)
    for reply, message in zip(map(json.loads, replies), map(json.loads, messages), strict=True):
        pairs = zip(reply, message, strict=True) if isinstance(reply, list) else [(reply, message)]
        assert all(got["id"] == asked["id"] and "error" not in got for got, asked in pairs), reply


def crowd(server: Server, clients: int) -> tuple[float, float]:
    """Many clients at once, each with ``STAY`` calls; who is refused comes again. Seconds until all are
    served, and the 99th percentile of one who had been there before, µs."""
    old, ping = Connection(server), PING[server.name]
    poll = select.epoll()
    poll.register(old.socket, select.EPOLLIN)
    waiting = left = clients
    there: dict[int, tuple[socket.socket, int]] = {}  # and how many calls each has still to make
    times: list[float] = []
    start = since = time.perf_counter()
    old.socket.sendall(ping)
    while left:
        while waiting:
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            if one.connect_ex(str(server.path)):  # so many that they are not even in the queue
                one.close()
                break
            waiting -= 1
            poll.register(one, select.EPOLLIN)
            there[one.fileno()] = one, STAY
            if not server.greets:
                one.sendall(ping)
                there[one.fileno()] = one, STAY - 1
        for fd, _ in poll.poll():
            if fd == old.socket.fileno():
                if old.take() is not None:
                    times.append(time.perf_counter() - since)
                    since = time.perf_counter()
                    old.socket.sendall(ping)
                continue
            one, more = there[fd]
            data = one.recv(1 << 16)
            refused = b'"error"' in data
            if more and not refused:  # the greeting, or a reply
                one.sendall(ping)
                there[fd] = one, more - 1
                continue
            if refused:
                assert more and b'"LIMIT"' in data, data
                waiting += 1
            else:
                assert b'"id":1' in data, data
                left -= 1
            there.pop(fd)[0].close()
    seconds = time.perf_counter() - start
    old.close()
    times.sort()
    return seconds, times[len(times) * 99 // 100] * 1e6


def rows(server: Server, message: str, connections: int, found: Figure, report: Report) -> None:
    """With one connection it is the latency that tells, with many the rate."""
    level: Level = "chart" if message == "daemon.ping" else "docs"
    if connections == 1:
        report.note(Kind(f"{message}, 1 connection", "µs", level=level), server.name, found.middle)
        report.note(Kind(f"{message}, 1 connection: p99", "µs", level="terminal"), server.name, found.p99)
        report.note(Kind(f"{message}: CPU of a call", "µs"), server.name, found.cpu)
    else:
        rate = Kind(f"{message}, {connections} connections: calls", "1/s", "more", level)
        report.note(rate, server.name, 1e6 / found.wall)
        late = Kind(f"{message}, {connections} connections: p99", "µs", level="terminal")
        report.note(late, server.name, found.p99)


def load(names: list[str], folder: Path, options: argparse.Namespace, report: Report) -> int:
    """Rounds of all rows with all servers up; how many calls xenpvd has answered."""
    total = 0
    with ExitStack() as stack:
        servers = {name: Server(name, folder, {options.cpus[1]}) for name in names}
        for server in servers.values():
            stack.callback(server.close)
        for _ in range(options.rounds):
            for connections in CONNECTIONS:
                for name, (ask, calls) in ROWS.items():
                    count = max(options.calls // (1 if calls == 1 else 40), connections)
                    for peer in ("xenpvd", "echo"):
                        found = measure(servers[peer], ask, count, calls, connections)
                        rows(servers[peer], name, connections, found, report)
                    total += count // connections * connections * calls
            if "qemu" in servers:
                found = measure(servers["qemu"], qmp, options.calls, 1, 1)
                rows(servers["qemu"], "daemon.ping", 1, found, report)
            for peer in ("xenpvd", "echo"):
                seconds, p99 = crowd(servers[peer], options.clients)
                clients = f"{options.clients} clients at once"
                report.note(
                    Kind(f"{clients}, {STAY} calls each: all served", "s", level="chart"), peer, seconds
                )
                report.note(Kind(f"{clients}: p99 of one who was there before", "µs"), peer, p99)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rpc", description=(__doc__ or "").partition("\n")[0]
    )
    last = max(os.sched_getaffinity(0))
    results.rounds(parser, 5)
    parser.add_argument(
        "--calls", type=int, default=2400, help="a round's messages of a row; batches: a 40th"
    )
    parser.add_argument("--clients", type=int, default=1000, help="who come all at once")
    parser.add_argument("--cpus", default=f"{last},{last}")
    options = parser.parse_args()
    first, _, second = options.cpus.partition(",")
    options.cpus = int(first), int(second)
    report, names = results.begin(
        "JSON-RPC calls, beside an echo server and QEMU's monitor", ["echo", "qemu"]
    )
    os.sched_setaffinity(0, {options.cpus[0]})
    with tempfile.TemporaryDirectory(prefix="xenpvd-bench-") as place:
        total = load(names, Path(place), options, report)
    report.finish()
    print(f"{total:,} calls of xenpvd's, and as many replies, each in its place")


if __name__ == "__main__":
    main()
