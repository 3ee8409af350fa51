"""From a process's start to its first answer, and what it takes while idle.

    python -m bench.start [--rounds N] [--seconds N]

xenpvd beside QEMU and an echo server, without a guest: QEMU has no machine (``-M none``), and is asked by
QMP; the echo server is asyncio and uvloop and nothing else, the least that a daemon in Python can be. All
Python code has its bytecode, as after an installation: the first start of each is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import results
from bench.results import Kind
from bench.servers import Server, cpu, memory

START = Kind("from start to the first answer", "ms", level="chart")
WORK = Kind("CPU until then", "ms")
MEMORY = Kind("memory while idle (PSS)", "MiB", level="chart")
IDLE = Kind("CPU while idle", "ms/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.start", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 7)
    parser.add_argument("--seconds", type=float, default=2, help="to be idle for, in each round")
    options = parser.parse_args()
    report, names = results.begin("Start and idleness of a daemon without a guest", ["qemu", "echo"])
    with tempfile.TemporaryDirectory(prefix="xenpvd-bench-") as place:
        for name in names:  # for its bytecode, and the page cache
            Server(name, Path(place)).close()
        for _ in range(options.rounds):
            with ExitStack() as stack:
                servers = []
                for name in names:
                    server = Server(name, Path(place))
                    stack.callback(server.close)
                    report.note(START, name, server.start_up * 1e3)
                    report.note(WORK, name, cpu(server.pid) / 1e3)
                    servers.append(server)
                before = [cpu(server.pid) for server in servers]
                time.sleep(options.seconds)
                for server, then in zip(servers, before, strict=True):
                    report.note(IDLE, server.name, (cpu(server.pid) - then) / 1e3 / options.seconds)
                    report.note(MEMORY, server.name, memory(server.pid))
    report.finish()


if __name__ == "__main__":
    main()
