"""``python -m lab``: keep a lab host warm, and run commands in it."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lab import host, jobs, kvm, paths
from lab.progress import LabError


def main(words: list[str] | None = None) -> int:
    """The command line; gives the exit status: the command's own for ``run``, 125 if the lab failed."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    kinds = argparse.ArgumentParser(add_help=False)
    kinds.add_argument(
        "--host",
        choices=host.KINDS,
        default="xen",
        help="which one: its KVM has Xen support (xen, the default; xen2, one more) or none (plain)",
    )
    verbs.add_parser("up", parents=[kinds], help="start the lab host, unless it runs")
    verbs.add_parser("down", parents=[kinds], help="stop the lab host")
    verbs.add_parser("status", parents=[kinds], help="say whether the lab host runs; exit status 1 if not")
    verbs.add_parser(
        "needed",
        help="exit status 0 if this machine's own /dev/kvm cannot run the shim (says why), 1 if it can",
    )
    verbs.add_parser("purge", help="stop all lab hosts and delete all that the cache holds")
    run = verbs.add_parser("run", parents=[kinds], help="run a command in the lab host, started if need be")
    run.add_argument("--tty", action="store_true", help="hand this terminal over to the command")
    run.add_argument(
        "--results", type=Path, metavar="DIR", help="put what the command leaves in $LAB_RESULTS here"
    )
    run.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for the command (again and again)"
    )
    run.add_argument("command", nargs="+", metavar="CMD", help="the command and its words, after --")
    args = parser.parse_args(words)
    try:
        match args.verb:
            case "up":
                print(f"lab host ({args.host}) up, pid {host.up(args.host).pid}")
            case "down":
                print(
                    f"lab host ({args.host}) down"
                    if host.down(args.host)
                    else f"no lab host ({args.host}) was up"
                )
            case "status":
                found = host.running(args.host)
                print(
                    f"lab host ({args.host}) up, pid {found.pid}"
                    if found
                    else f"no lab host ({args.host}) is up"
                )
                return 0 if found else 1
            case "needed":
                why = kvm.unfit()
                print(why or "the lab is not needed here", file=sys.stderr)
                return 0 if why else 1
            case "purge":
                for kind in host.KINDS:
                    host.down(kind)
                for name in ("apt", "assets", "lab"):
                    shutil.rmtree(paths.cache() / name, ignore_errors=True)
            case "run":
                environ = dict(item.partition("=")[::2] for item in args.env)
                return jobs.run(
                    args.command, args.host, terminal=args.tty, results=args.results, environ=environ
                )
    except LabError as fault:
        print(f"lab: {fault}", file=sys.stderr)
        return 125
    return 0


if __name__ == "__main__":
    sys.exit(main())
