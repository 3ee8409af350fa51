"""What this machine's /dev/kvm can do: the lab is for those that lack Xen support."""

from __future__ import annotations

import fcntl
import os
import struct

KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_CREATE_VCPU = 0xAE41
KVM_XEN_HVM_CONFIG = 0x4038AE7A
KVM_ENABLE_CAP = 0x4068AEA3
KVM_CAP_XEN_HVM = 38
KVM_CAP_SPLIT_IRQCHIP = 121


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


def hold_static_keys() -> tuple[int, ...]:
    """Keep a VM that never runs, for as long as this process lives; its file descriptors.

    The first VM, the last one, and each LAPIC that is enabled patch branches into the running kernel
    (preempt notifiers, kvm_xen_enabled, apic_sw_disabled). QEMU's multi-threaded emulator sometimes still
    executes the breakpoint that such a patch begins with: "Oops: int3" in __schedule. With this VM, whose
    vCPU's LAPIC stays disabled, nothing is patched when guests come and go.
    """
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    fcntl.ioctl(vm, KVM_XEN_HVM_CONFIG, struct.pack("=II48x", 1 << 1, 0x4000_0000))  # INTERCEPT_HCALL
    fcntl.ioctl(vm, KVM_ENABLE_CAP, struct.pack("=IIQ88x", KVM_CAP_SPLIT_IRQCHIP, 0, 24))
    return kvm, vm, fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
