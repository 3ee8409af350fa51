"""What this machine's /dev/kvm can do: the lab is for those that cannot run the shim."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

KVM_CHECK_EXTENSION = 0xAE03
KVM_CAP_XEN_HVM = 38

DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
MODULES = Path("/sys/module")


def xen_hvm() -> int:
    """KVM_CAP_XEN_HVM's bits (linux/kvm.h), 0 without them or without a usable /dev/kvm."""
    try:
        kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM)
    except OSError:
        return 0
    finally:
        os.close(kvm)


def unfit() -> str:
    """Why /dev/kvm cannot run the shim, "" if it can. Xen support of its own is not needed for that.

    A KVM without the CPU's virtualization (PVM, as in some cloud machines) has all the ioctls, but emulates
    the shim instruction by instruction.
    """
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as fault:
        return f"{DEVICE} cannot be used: {fault.strerror}"
    flags = {
        word for line in CPUINFO.read_text().splitlines() if line.startswith("flags") for word in line.split()
    }
    if not flags & {"vmx", "svm"}:
        return f"{DEVICE} is there, but this machine's CPU has no virtualization (no vmx or svm)"
    if not any((MODULES / name).exists() for name in ("kvm_intel", "kvm_amd")):
        return f"{DEVICE} is there, but it is not of kvm_intel or kvm_amd"
    return ""
