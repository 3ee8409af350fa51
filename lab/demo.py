"""``make demo``: a real guest, here if this machine's KVM can play Xen, else in the lab host."""

from __future__ import annotations

import os
import sys

from lab import jobs
from lab.kvm import xen_hvm
from lab.progress import LabError
from lab.tour import tour


def main() -> int:
    person = sys.stdin.isatty() and sys.stdout.isatty()
    caps = xen_hvm()
    if caps:
        where = "in the lab host" if "XENPVD_IN_LAB" in os.environ else "on this machine"
        print(f"The guest runs {where}: its /dev/kvm can play Xen (KVM_CAP_XEN_HVM {caps:#x}).", flush=True)
        return tour(person)
    print(
        "The guest runs in the lab host, an emulated machine: this one's /dev/kvm is missing or cannot play\n"
        "Xen (KVM_CAP_XEN_HVM 0), so everything is about ten times slower than on a machine that has it.",
        flush=True,
    )
    return jobs.run([sys.executable, "-m", "lab.demo"], terminal=person)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as fault:
        sys.exit(f"demo: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
