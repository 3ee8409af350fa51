"""JSON-RPC calls at xenpvd's rpc.sock, beside a bare echo server and QEMU's monitor.

    python -m bench.rpc [--rounds N] [--calls N] [--clients N] [--cpus CLIENT,SERVER]

A daemon without a guest, a server of asyncio streams (on uvloop, too) that sends each line back, which is
the least that such a daemon could do, and, where there is one, QEMU without a machine (``-M none``), whose
monitor serves one client. By turns, in the same run. Each connection has one call at a time, and its replies
are held against what was asked: none may be lost, or come in another's place. Client and servers share a CPU
if --cpus does not say otherwise. A row has medians over the rounds; in brackets is the range of the rounds'
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from bench.rpc_peers import QEMU, Connection, Server

BATCH = 64
#: Calls of each client in a crowd
STAY = 10
CONNECTIONS = (1, 32, 64)


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
    busy, cpu, begin = len(pool), server.cpu(), time.perf_counter()
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
    wall, cpu = time.perf_counter() - begin, server.cpu() - cpu
    for one in pool:
        check(one.replies, messages)
        one.close()
    times.sort()
    done = each * connections * calls
    middle, p99 = statistics.median(times), times[len(times) * 99 // 100]
    return Figure(middle * 1e6, p99 * 1e6, cpu / done, wall * 1e6 / done)


def check(replies: list[bytes], messages: list[bytes]) -> None:
    """A reply for each, in their order, and no error."""
    assert len(replies) == len(messages)
    for reply, message in zip(map(json.loads, replies), map(json.loads, messages), strict=True):
        pairs = zip(reply, message, strict=True) if isinstance(reply, list) else [(reply, message)]
        assert all(got["id"] == asked["id"] and "error" not in got for got, asked in pairs), reply


def crowd(server: Server, clients: int) -> tuple[float, int, float]:
    """Many clients at once, each with ``STAY`` calls; who is refused comes again. Seconds until all are
    served, how often one was refused, and the 99th percentile of one who had been there before, µs."""
    old, ping = Connection(server), call("daemon.ping")(1) + b"\n"
    poll = select.epoll()
    poll.register(old.socket, select.EPOLLIN)
    waiting, left, refused = clients, clients, 0
    there: dict[int, tuple[socket.socket, int]] = {}  # and how many calls each has still to make
    times: list[float] = []
    begin = since = time.perf_counter()
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
        for fd, _ in poll.poll():
            if fd == old.socket.fileno():
                if old.take() is not None:
                    times.append(time.perf_counter() - since)
                    since = time.perf_counter()
                    old.socket.sendall(ping)
                continue
            one, more = there[fd]
            data = one.recv(1 << 16)
            if more and b'"error"' not in data:  # the greeting, or a reply
                one.sendall(ping)
                there[fd] = one, more - 1
                continue
            if more:
                assert b'"LIMIT"' in data, data
                refused, waiting = refused + 1, waiting + 1
            else:
                assert b'"result"' in data, data
                left -= 1
            there.pop(fd)[0].close()
    seconds = time.perf_counter() - begin
    old.close()
    times.sort()
    return seconds, refused, times[len(times) * 99 // 100] * 1e6


def span(values: list[float]) -> str:
    return f"({min(values):.0f}-{max(values):.0f})"


def row(name: str, rounds: list[Figure], floor: list[Figure] | None) -> str:
    middle, p99, cpu, wall = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = ""
    if floor is not None:
        ratios = [mine.middle / least.middle for mine, least in zip(rounds, floor, strict=True)]
        ratio = f"{statistics.median(ratios):6.1f}"
    middles = span([one.middle for one in rounds])
    return f"{name:<32}{middle:9.0f} {middles:<15}{p99:9.0f}{cpu:9.1f}{1e6 / wall:10.0f}{ratio}"


def introduce(options: argparse.Namespace) -> None:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    print(f"xenpvd   {version('xenpvd')}, Python {platform.python_version()}, uvloop {version('uvloop')}")
    if options.qemu:
        print(subprocess.check_output([QEMU, "--version"], text=True).partition("\n")[0])
    machine = f"{model[1] if model else '?'}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    client, server = options.cpus
    print(f"machine  {machine}, load {os.getloadavg()[0]:.1f}; client on CPU {client}, servers on {server}")


def begin(names: list[str], folder: Path, options: argparse.Namespace) -> None:
    """From the start to the first word, and the memory then."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            server = Server(name, folder, options.cpus[1])
            found[name].append((server.start_up, server.memory()))
            server.close()
    print("\nstart    ms to the first word, and MiB of memory then")
    for name, pairs in found.items():
        seconds, memory = zip(*pairs, strict=True)
        print(
            f"{name:<9}{statistics.median(seconds) * 1e3:6.0f} {span([one * 1e3 for one in seconds]):<12}"
            f"{statistics.median(memory):8.1f}"
        )


def load(names: list[str], folder: Path, options: argparse.Namespace) -> int:
    """Rounds of all rows with all servers up; how many calls xenpvd has answered."""
    figures: dict[tuple[str, str, int], list[Figure]] = {}
    crowds = []
    total = 0
    with ExitStack() as stack:
        servers = {name: Server(name, folder, options.cpus[1]) for name in names}
        for server in servers.values():
            stack.callback(server.close)
        for number in range(options.rounds):
            for connections in CONNECTIONS:
                for name, (ask, calls) in ROWS.items():
                    count = max(options.calls // (1 if calls == 1 else 40), connections)
                    for peer in ("xenpvd", "echo"):
                        found = measure(servers[peer], ask, count, calls, connections)
                        figures.setdefault((peer, name, connections), []).append(found)
                    total += count // connections * connections * calls
            if "qemu" in servers:
                found = measure(servers["qemu"], qmp, options.calls, 1, 1)
                figures.setdefault(("qemu", "query-status", 1), []).append(found)
            crowds.append(crowd(servers["xenpvd"], options.clients))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"\n{'connections, µs':<32}{'median':>9} {'rounds':<15}{'p99':>9}{'CPU':>9}{'calls/s':>10}  echo")
    for (peer, name, connections), rounds in sorted(figures.items(), key=lambda item: item[0][2]):
        floor = figures.get(("echo", name, connections)) if peer == "xenpvd" else None
        print(row(f"{connections:>3}  {peer:<7}{name}", rounds, floor))
    seconds, refused, p99 = (statistics.median(column) for column in zip(*crowds, strict=True))
    print(
        f"\n{options.clients} clients at once, {STAY} calls each: all served within {seconds:.2f} s, "
        f"{refused:.0f} times one was refused and came again; p99 of one who was there before: {p99:.0f} µs"
    )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    last = max(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--calls", type=int, default=2400, help="a round's messages of a row; batches: a 40th"
    )
    parser.add_argument("--clients", type=int, default=1000, help="who come all at once")
    parser.add_argument("--cpus", default=f"{last},{last}")
    options = parser.parse_args()
    first, _, second = options.cpus.partition(",")
    options.cpus = int(first), int(second)
    os.sched_setaffinity(0, {options.cpus[0]})
    options.qemu = shutil.which(QEMU)
    introduce(options)
    names = ["xenpvd", "echo", *(["qemu"] if options.qemu else [])]
    if not options.qemu:
        print(f"without {QEMU}: it is not installed")
    with tempfile.TemporaryDirectory(prefix="xenpvd-bench-") as place:
        begin(names, Path(place), options)
        total = load(names, Path(place), options)
    print(f"{total} calls of xenpvd's, and as many replies, each in its place")


if __name__ == "__main__":
    main()
