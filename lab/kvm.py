"""What this machine's /dev/kvm can do: the lab is for those that lack Xen support."""

from __future__ import annotations

import fcntl
import os

KVM_CHECK_EXTENSION = 0xAE03
KVM_CAP_XEN_HVM = 38


def xen_hvm() -> int:
    """KVM_CAP_XEN_HVM's bits (linux/kvm.h), 0 without them or without a usable /dev/kvm."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM)
    except OSError:
        return 0
    finally:
        os.close(kvm)
