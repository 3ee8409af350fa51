"""Over their unix sockets, with one client: xenpvd's store beside Debian's C xenstored.

    python -m bench.xenstore [--rounds N] [--count N] [--nodes 100,100000] [--cpus CLIENT,STORE]

By turns, in the same run. The client is xenstore_client.c, and no_xen.c lets the unmodified xenstored start
where there is no Xen; both want a C compiler. Client and stores share a CPU if --cpus does not say otherwise:
with two, most of a latency is a sleeping CPU's awakening, and the scheduler, left alone, does now this, now
that. A row has medians over all rounds of a round's median, 99th percentile and CPU time of the store; in
brackets is the range of the rounds' medians, or of their ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

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
    def memory(self) -> int:
        """Bytes that are this process's only (its PSS)."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10


def span(values: list[float], digits: int = 1) -> str:
    return f"({min(values):.{digits}f}-{max(values):.{digits}f})"


def row(name: str, rounds: dict[str, list[Round]]) -> str:
    """A line of the table, in µs."""
    text = f"{name:<16}"
    for store in NAMES:
        if not rounds[store]:
            text += f"{'-':>10}{'':29}"
            continue
        columns = [[one[name][column] / 1000 for one in rounds[store]] for column in range(3)]
        middle, p99, cpu = map(statistics.median, columns)
        text += f"{middle:10.1f}{p99:7.1f}{cpu:7.1f} {span(columns[0]):<14}"
    if all(rounds[store] for store in NAMES):
        pairs = zip(*(rounds[store] for store in NAMES), strict=True)
        ratios = [mine[name][0] / theirs[name][0] for mine, theirs in pairs]
        text += f"{statistics.median(ratios):6.2f} {span(ratios, 2)}"
    return text


def size(stores: dict[str, Store], nodes: int, options: argparse.Namespace) -> dict[str, list[Round]]:
    """Fill both stores, then measure them by turns."""
    client = options.cpus[0]
    taken = {}
    for name, store in stores.items():
        before, begin = store.memory, time.monotonic()
        store.ask("populate", nodes, cpu=client)
        taken[name] = store.memory - before, time.monotonic() - begin
    rounds: dict[str, list[Round]] = {name: [] for name in NAMES}
    for _ in range(options.rounds):
        for name, store in stores.items():
            rounds[name].append(store.measure(nodes, options.count, client))
    print(f"\n{nodes} nodes, {options.rounds} rounds of {options.count}; µs")
    print(" " * 16 + "".join(f"{name:>10}{'p99':>7}{'CPU':>7} {'rounds':<14}" for name in NAMES) + " ratio")
    for name in rounds["xenpvd"][0]:
        print(row(name, rounds), flush=True)
    if nodes >= 10000:  # below, it is the allocator's steps
        for name, (memory, seconds) in taken.items():
            print(f"{name:<16}{memory / nodes:6.0f} bytes of memory a node, {seconds:.1f} s to write all")
    return rounds


def growth(found: dict[int, dict[str, list[Round]]]) -> None:
    """What the largest store costs beside the smallest."""
    few, many = min(found), max(found)
    print(f"\nmedian at {many} nodes / at {few}")
    for name in found[few]["xenpvd"][0]:
        text = f"{name:<16}"
        for store in NAMES:
            if found[few][store]:
                small, large = (
                    statistics.median(one[name][0] for one in found[nodes][store]) for nodes in (few, many)
                )
                text += f"{store:>12}{large / small:6.2f}"
        print(text)


def introduce(cpus: tuple[int, int]) -> None:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    theirs = (packages.installed_version(packages.XEN_TOOLS) or "not here").partition(",")[0]
    mine = f"{version('xenpvd')}, Python {platform.python_version()}, uvloop {version('uvloop')}"
    print(f"xenpvd     {mine}\nxenstored  {theirs}")
    machine = f"{model[1] if model else '?'}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    load = os.getloadavg()[0]
    print(f"machine    {machine}, load {load:.1f}; client on CPU {cpus[0]}, stores on {cpus[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    last = max(os.sched_getaffinity(0))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=4000, help="how often a round does each")
    parser.add_argument("--nodes", default="100,100000")
    parser.add_argument("--cpus", default=f"{last},{last}")
    options = parser.parse_args()
    first, _, second = options.cpus.partition(",")
    options.cpus = int(first), int(second)
    if shutil.which("cc") is None:
        sys.exit("bench: no C compiler here. Install gcc and libc6-dev.")
    introduce(options.cpus)
    found = {}
    with tempfile.TemporaryDirectory(prefix="xenpvd-bench-") as place:
        build(Path(place))
        for nodes in map(int, options.nodes.split(",")):
            with ExitStack() as stack:
                stores = {}
                for name in NAMES:
                    try:
                        stores[name] = Store(name, Path(place), options.cpus[1])
                    except LabError as fault:
                        print(f"{name} does not run: {fault}")
                    else:
                        stack.callback(stores[name].close)
                found[nodes] = size(stores, nodes, options)
    if len(found) > 1:
        growth(found)


if __name__ == "__main__":
    main()
