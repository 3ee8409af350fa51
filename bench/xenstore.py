"""Over their unix sockets, with one client: xenpvd's store beside Debian's C xenstored.

    python -m bench.xenstore [--rounds N] [--count N] [--nodes 100,100000] [--cpus CLIENT,STORE]

By turns, in the same run. The client is xenstore_client.c, and no_xen.c lets the unmodified xenstored start
where there is no Xen; both want a C compiler. Client and stores share a CPU if --cpus does not say otherwise:
with two, most of a latency is a sleeping CPU's awakening, and the scheduler, left alone, does now this, now
that.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import results
from bench.results import Kind, Level, Report
from bench.servers import memory
from lab import packages
from lab.progress import LabError

HERE = Path(__file__).parent
NAMES = ("xenpvd", "xenstored")

#: By the row's name: median, 99th percentile and the store's CPU, in ns.
Round = dict[str, tuple[int, int, int]]


def build(folder: Path) -> None:
    """The client and what xenstored is given in Xen's place."""
    for source, options in (("xenstore_client", ()), ("no_xen", ("-shared", "-fPIC"))):
        subprocess.run(["cc", "-O2", *options, "-o", folder / source, HERE / f"{source}.c"], check=True)


class Store:
    """One of the two, serving a store that begins empty; its process is only the store."""

    def __init__(self, name: str, folder: Path, cpu: int) -> None:
        self.socket = folder / f"{name}.sock"
        self._client = folder / "xenstore_client"
        argv: list[str | Path]
        if name == "xenpvd":
            argv = [sys.executable, "-m", "xenpvd.backends.xenstore", "--socket", self.socket]
            environment = dict(os.environ)
        else:
            argv = [packages.xen_tool("xenstored"), "--no-fork"]
            preload = {"LD_PRELOAD": str(folder / "no_xen"), "XENSTORED_RUNDIR": str(folder)}
            environment = packages.xen_environment(self.socket) | preload
        self.socket.unlink(missing_ok=True)
        log = folder / f"{name}.log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(["taskset", "-c", str(cpu), *argv], env=environment, stderr=file)
        try:
            self._wait(log)
        except BaseException:
            self.close()
            raise

    def _wait(self, log: Path) -> None:
        end = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise LabError(log.read_text(errors="replace").strip()[-500:] or "it ended without a word")
            time.sleep(0.05)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def ask(self, *words: object, cpu: int) -> str:
        argv: list[str | Path] = ["taskset", "-c", str(cpu), self._client, self.socket, *map(str, words)]
        return subprocess.check_output(argv, text=True)

    def measure(self, nodes: int, count: int, cpu: int) -> Round:
        lines = map(str.split, self.ask("measure", nodes, count, cpu=cpu).splitlines())
        return {name: (int(median), int(p99), int(used)) for name, median, p99, used in lines}

    @property
    def memory(self) -> float:
        """Bytes that are this process's only (its PSS)."""
        return memory(self._process.pid) * (1 << 20)


def size(
    stores: dict[str, Store], nodes: int, options: argparse.Namespace, report: Report, level: Level
) -> None:
    """Fill both stores, then measure them by turns."""
    client = options.cpus[0]
    for name, store in stores.items():
        before = store.memory
        store.ask("populate", nodes, cpu=client)
        if nodes >= 10000:  # below, it is the allocator's steps
            taken = (store.memory - before) / nodes
            report.note(Kind("memory of a node", "bytes", level="chart"), name, taken)
    for _ in range(options.rounds):
        for name, store in stores.items():
            for verb, (middle, p99, used) in store.measure(nodes, options.count, client).items():
                what = f"{verb}, {nodes:,} nodes"
                report.note(Kind(what, "µs", level=level), name, middle / 1000)
                report.note(Kind(f"{what}: p99", "µs", level="terminal"), name, p99 / 1000)
                report.note(Kind(f"{what}: CPU", "µs", level="terminal"), name, used / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.xenstore", description=(__doc__ or "").partition("\n")[0]
    )
    last = max(os.sched_getaffinity(0))
    results.rounds(parser, 7)
    parser.add_argument("--count", type=int, default=4000, help="how often a round does each")
    parser.add_argument("--nodes", default="100,100000")
    parser.add_argument("--cpus", default=f"{last},{last}")
    options = parser.parse_args()
    first, _, second = options.cpus.partition(",")
    options.cpus = int(first), int(second)
    if shutil.which("cc") is None:
        sys.exit("bench: no C compiler here. Install gcc and libc6-dev.")
    with tempfile.TemporaryDirectory(prefix="xenpvd-bench-") as place:
        build(Path(place))
        names, versions, why = list(NAMES), {}, ""
        try:
            packages.fetch((packages.XEN_TOOLS,))
            kept = packages.installed_version(packages.XEN_TOOLS) or "?"
            versions["xenstored"] = kept.partition(",")[0].rpartition(" ")[2]
            Store(NAMES[1], Path(place), options.cpus[1]).close()
        except LabError as fault:
            names.remove(NAMES[1])
            why = str(fault)
        report, _ = results.begin("xenstore over its socket, beside Xen's own xenstored", versions=versions)
        if why:
            report.miss(NAMES[1], why)
        sizes = [int(nodes) for nodes in options.nodes.split(",")]
        for nodes in sizes:
            with ExitStack() as stack:
                stores = {name: Store(name, Path(place), options.cpus[1]) for name in names}
                for store in stores.values():
                    stack.callback(store.close)
                size(stores, nodes, options, report, "chart" if nodes == max(sizes) else "docs")
    report.finish()


if __name__ == "__main__":
    main()
