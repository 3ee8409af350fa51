"""Many idle daemons without guests, beside as many QEMUs: memory, CPU, and the time to list them.

    python -m bench.density [--fleets 20,100] [--rounds N] [--seconds N]

The list is ``xenpvctl list``; for QEMU it is the least script that asks each monitor for the guest's name and
state, one after the other, in Python without any package. Both are measured from the start of their process
to its end. Both fleets of a size are up together, and measured by turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import results
from bench.results import Kind, Report
from bench.servers import Server, cpu, environment, memory

#: started at once; more would only wait for each other
TOGETHER = 10

LIST = """
import json, pathlib, socket, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("qemu*.sock")):
    one = socket.socket(socket.AF_UNIX)
    one.connect(str(path))
    lines = one.makefile("rw")
    lines.readline()
    said = []
    for command in "qmp_capabilities", "query-name", "query-status":
        lines.write(json.dumps({"execute": command}))
        lines.flush()
        said.append(json.loads(lines.readline())["return"])
    print(said[1]["name"], said[2]["status"])
"""


def fleet(name: str, folder: Path, count: int, stack: ExitStack) -> list[Server]:
    """``count`` of them, each of which has answered."""
    servers: list[Server] = []
    while len(servers) < count:
        numbers = range(len(servers), min(len(servers) + TOGETHER, count))
        some = [Server(name, folder, number=number, wait=False) for number in numbers]
        for server in some:
            stack.callback(server.close)
        for server in some:
            server.answered()
        servers += some
    return servers


def listed(name: str, folder: Path, count: int) -> float:
    """Seconds until the list of all was printed."""
    if name == "xenpvd":
        argv = [sys.executable, "-m", "xenpvd.ctl.cli", "--run-dir", str(folder / "xenpvd"), "list"]
    else:
        argv = [sys.executable, "-c", LIST, str(folder)]
    since = time.monotonic()
    said = subprocess.check_output(argv, text=True, env=environment(folder))
    seconds = time.monotonic() - since
    assert sum(line.startswith("bench") for line in said.splitlines()) == count, said
    return seconds


def measure(count: int, names: list[str], options: argparse.Namespace, report: Report) -> None:
    memories = Kind(f"{count} daemons: memory of each (PSS)", "MiB", level="chart")
    idle = Kind(f"{count} daemons: CPU of all while idle", "ms/s", level="docs")
    seen = Kind(f"{count} daemons: list them", "ms", level="chart")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xenpvd-bench-")))
        fleets = {name: fleet(name, folder, count, stack) for name in names}
        for name in names:  # for the client's bytecode
            listed(name, folder, count)
        for _ in range(options.rounds):
            before = {name: sum(cpu(one.pid) for one in servers) for name, servers in fleets.items()}
            time.sleep(options.seconds)
            for name, servers in fleets.items():
                used = sum(cpu(one.pid) for one in servers) - before[name]
                report.note(idle, name, used / 1e3 / options.seconds)
                report.note(memories, name, statistics.mean(memory(one.pid) for one in servers))
            for name in names:
                report.note(seen, name, listed(name, folder, count) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.density", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 5)
    parser.add_argument("--fleets", default="20,100", help="how many daemons, one fleet after the other")
    parser.add_argument("--seconds", type=float, default=3, help="to be idle for, in each round")
    options = parser.parse_args()
    report, names = results.begin("Many idle daemons without guests", ["qemu"])
    for count in map(int, options.fleets.split(",")):
        measure(count, names, options, report)
    report.finish()


if __name__ == "__main__":
    main()
