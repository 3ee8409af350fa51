"""The accelerators' one door, and the choice between them.

``kvm-xen`` is KVM with its own Xen support (KVM_CAP_XEN_HVM): events stay in the kernel. ``kvm`` is any KVM:
the same guest sees the same Xen, by changed hypercall instructions and with events done here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal, Protocol

from xenpvd.abi import linux_kvm as k
from xenpvd.errors import Unsupported
from xenpvd.vmm import hypercall_insn
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.kvm import System
from xenpvd.vmm.port import BackendPort
from xenpvd.vmm.vcpu import VcpuThread
from xenpvd.vmm.xen.evtchn import Delivery

Accel = Literal["auto", "kvm-xen", "kvm"]

XEN_CAPS_NEEDED = (
    k.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    | k.KVM_XEN_HVM_CONFIG_SHARED_INFO
    | k.KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    | k.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
)
_XEN_KERNEL = "Linux 5.19 or newer with CONFIG_KVM_XEN, as Debian 13's"

#: what either accelerator needs, and since when KVM has it
_NEEDED = (
    (k.KVM_CAP_IMMEDIATE_EXIT, "no immediate exit (Linux 4.11 or newer has)"),
    (k.KVM_CAP_SPLIT_IRQCHIP, "no split irqchip (Linux 4.4 or newer has)"),
    (k.KVM_CAP_SIGNAL_MSI, "no KVM_SIGNAL_MSI (Linux 3.5 or newer has)"),
)


class Accelerator(Delivery, Protocol):
    """How events travel, and what of ``Platform`` depends on it.

    What is raised before the guest can hear it is kept: before it has placed shared_info, and, if it is below
    a ``shim``, before :meth:`guest_up`. A shim looks up its guest for every event that is not masked, unmasks
    the console's and the store's ports before it has one, and dies of an event in between: of a key that
    somebody types (pv_shim_setup_dom and pv_shim_inject_evtchn in Xen's pv/shim.c).

    Called with the machine's lock held, but for
    the first three, which come before any vCPU runs. Raises ``XenError`` for what the guest cannot have and
    :class:`KvmError` for what KVM does not take."""

    @property
    def hypercall_port(self) -> int | None:
        """The I/O port whose writes are hypercalls; None if KVM knows them itself."""

    def configure(self) -> None:
        """Right after the VM is made, before its vCPUs."""

    def add_vcpu(self, vcpu: VcpuThread) -> None:
        """Before its thread starts."""

    def edit(self, segment: bytes) -> bytes:
        """A shim's code as it is to be loaded. Raises :class:`Unsupported`."""

    def backend_port(self, port: int, on_close: Callable[[], None]) -> BackendPort:
        """The backend's end of a port that has just been connected."""

    def close(self) -> None:
        """The VM is about to go; backends' ports may outlive it, and raise nothing then. Any thread."""

    def hypercall_page(self, gpa: int, longmode: bool) -> None:
        """The guest has written the hypercall MSR (and no kernel has done it). Raises ``XenError``."""

    def latch_long_mode(self, longmode: bool) -> None: ...

    def set_shared_info(self, gfn: int) -> None: ...

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None: ...

    def set_time_info(self, vcpu: int, gpa: int | None) -> None: ...

    def set_runstate_area(self, vcpu: int, gpa: int | None) -> None: ...

    def set_upcall_vector(self, vcpu: int, vector: int) -> None: ...

    def set_callback_vector(self, vector: int) -> None: ...

    def set_timer(self, vcpu: int, deadline: int | None) -> None: ...


def shows_msr_writes(system: System) -> bool:
    """Whether this KVM can show us the guest's write of the hypercall MSR."""
    return all(map(system.check_extension, (k.KVM_CAP_X86_USER_SPACE_MSR, k.KVM_CAP_X86_MSR_FILTER)))


def choose(system: System, accel: str, image: BootImage | None = None) -> tuple[str, str, int]:
    """(accelerator, why, KVM_CAP_XEN_HVM's bits). Raises :class:`Unsupported` with the cure, also if
    ``image`` cannot run with it."""
    name, why, caps = _choose(system, accel)
    if name == "kvm" and image is not None and not image.shim:
        hypercall_insn.check_kernel(image.kernel.notes, shows_msr_writes(system))
    return name, why, caps


def _choose(system: System, accel: str) -> tuple[str, str, int]:
    for cap, lack in _NEEDED:
        if not system.check_extension(cap):
            raise Unsupported(
                f"cannot run on this host: its KVM has {lack}. Use a newer kernel.", feature="KVM"
            )
    wanted = k.KVM_SYNC_X86_REGS | k.KVM_SYNC_X86_SREGS
    if system.check_extension(k.KVM_CAP_SYNC_REGS) & wanted != wanted:
        raise Unsupported(
            "cannot run on this host: its KVM has no KVM_CAP_SYNC_REGS (Linux 4.17 or newer has). "
            "Use a newer kernel.",
            feature="KVM",
        )
    caps = system.check_extension(k.KVM_CAP_XEN_HVM)
    able = caps & XEN_CAPS_NEEDED == XEN_CAPS_NEEDED
    lack = f"its KVM has Xen capabilities {caps:#x} and {XEN_CAPS_NEEDED:#x} are needed"
    if accel == "kvm-xen" and not able:
        raise Unsupported(
            f"cannot use kvm-xen on this host: {lack}. Use {_XEN_KERNEL}, "
            'or accel = "kvm", which needs none.',
            feature="KVM_CAP_XEN_HVM",
            caps=caps,
        )
    if accel == "kvm":
        return "kvm", "asked for; events and hypercalls are done by xenpvd", caps
    if able:
        asked = "asked for; " if accel == "kvm-xen" else ""
        return "kvm-xen", f"{asked}KVM_CAP_XEN_HVM {caps:#x}: events stay in the kernel", caps
    return "kvm", f"{lack} for kvm-xen ({_XEN_KERNEL}): events and hypercalls are done by xenpvd", caps


def probe(accel: str = "auto", image: BootImage | None = None) -> str:
    """Which accelerator this host would use. Raises as :func:`choose`, and :class:`KvmError` without KVM."""
    with contextlib.closing(System()) as system:
        return choose(system, accel, image)[0]
