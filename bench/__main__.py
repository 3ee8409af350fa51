"""``python -m bench [NAME…]``: run all benchmarks, or these; then make the chart, and the tables of
docs/performance.md, of all results that are kept.

Nothing of it is a pass or a fail: the exit status is 1 only if a benchmark itself broke.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from bench import chart, docs

#: in the order of the chart; those that boot guests come last
NAMES = (
    "start",
    "density",
    "rpc",
    "xenstore",
    "block",
    "saturated",
    "boot",
    "hotadd",
    "console",
    "disk",
    "busy",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--rounds", type=int, help="instead of each one's own number")
    parser.add_argument("--draw", action="store_true", help="measure nothing: chart and tables anew, no more")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    broken = []
    for name in [] if options.draw else options.names or NAMES:
        begin = time.monotonic()
        words = [f"--rounds={options.rounds}"] if options.rounds else []
        if subprocess.call([sys.executable, "-m", f"bench.{name}", *words]):
            broken.append(name)
        print(f"bench.{name}: {time.monotonic() - begin:.0f} s", flush=True)
    reports = docs.kept(NAMES)
    chart.write(reports)
    docs.write(reports)
    if broken:
        print(f"bench: {', '.join(broken)} broke, see above; the others are kept.", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
