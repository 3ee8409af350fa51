"""Calls to a VMM whose guest keeps a disk as busy as it can: xenpvd's daemon.ping, QEMU's query-status.

    python -m bench.busy [--rounds N] [--seconds N]

fio runs in the guest as in bench.disk; a client calls every 5 ms, before it and meanwhile. Both are up, by
turns: the one that is measured has the machine to itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack

from bench import results
from bench.disk import ROWS, START, arguments, booted, outcome
from bench.guests import Guest
from bench.place import all_up, begin
from bench.results import Kind, Report

ROW = ROWS[0]
PAUSE = 0.005
IDLE = Kind("a call, the guest idle", "µs")
BUSY = Kind("a call, its disk saturated", "µs", level="chart")
LATE = Kind("a call, its disk saturated: p99", "µs")
DONE = Kind(f"meanwhile, {ROW.name}: requests", "1/s", "more")


def calls(one: Guest, seconds: float) -> list[float]:
    """µs of each."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        since = time.perf_counter()
        one.ping()
        times.append((time.perf_counter() - since) * 1e6)
        time.sleep(PAUSE)
    return sorted(times)


def measure(one: Guest, name: str, seconds: int, report: Report) -> None:
    report.note(IDLE, name, statistics.median(calls(one, seconds)))
    one.type(START)
    one.expect("job-begins")
    times = calls(one, seconds * 0.8)
    one.expect("job-ends")
    (done,) = outcome(one)
    report.note(BUSY, name, statistics.median(times))
    report.note(LATE, name, times[len(times) * 99 // 100])
    report.note(DONE, name, done["iops"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.busy", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 5)
    arguments(parser)
    args = parser.parse_args()
    report, names = begin("Calls while a real guest's disk is saturated, beside QEMU's monitor", "qemu")
    with ExitStack() as stack:
        guests = all_up(stack, names, lambda which: booted(which, args, [ROW]), report)
        for _ in range(args.rounds):
            for name, one in guests.items():
                measure(one, name, args.seconds, report)
    report.finish()


if __name__ == "__main__":
    main()
