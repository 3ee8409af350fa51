"""``make demo``: a real guest, here if this machine's /dev/kvm can run the shim, else in a lab host."""

from __future__ import annotations

import argparse
import os
import sys

from lab import host, jobs, kvm
from lab.progress import LabError
from lab.tour import tour


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("--host", choices=host.KINDS, help="use this lab host, whatever this machine has")
    kind = parser.parse_args().host
    person = sys.stdin.isatty() and sys.stdout.isatty()
    why = kvm.unfit()
    if not why and not kind:
        where = "in the lab host" if "XENPVD_IN_LAB" in os.environ else "on this machine"
        caps = kvm.xen_hvm()
        how = f"its /dev/kvm can play Xen (KVM_CAP_XEN_HVM {caps:#x})" if caps else "its KVM is a plain one"
        print(f"The guest runs {where}: {how}.", flush=True)
        return tour(person)
    print(
        f"The guest runs in the lab host, an emulated machine{f', as {why}' if why else ''}.\n"
        "So everything is about ten times slower than on a machine that has real KVM.",
        flush=True,
    )
    return jobs.run([sys.executable, "-m", "lab.demo"], kind or "xen", terminal=person)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as fault:
        sys.exit(f"demo: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
