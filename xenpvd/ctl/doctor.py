"""What a host needs to run guests, each thing with its cure."""

from __future__ import annotations

import ctypes
import fcntl
import getpass
import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

from xenpvd.abi.linux_kvm import (
    KVM_CAP_XEN_HVM,
    KVM_CHECK_EXTENSION,
    KVM_GET_API_VERSION,
    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL,
    KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
    KVM_XEN_HVM_CONFIG_SHARED_INFO,
)

KVM = "/dev/kvm"
#: What guests need of KVM_CAP_XEN_HVM.
XEN_BITS = {
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL: "hypercall exits",
    KVM_XEN_HVM_CONFIG_SHARED_INFO: "shared info",
    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL: "2-level events",
    KVM_XEN_HVM_CONFIG_EVTCHN_SEND: "event send",
}
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Finding(NamedTuple):
    """``verdict`` is ok, warn or FAIL."""

    verdict: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<5} {self.text}"


def examine(run_dir: Path) -> list[Finding]:
    """Everything that there is to say."""
    return [*_kvm(), _shim(), _huge_pages(), _python(), _uvloop(), _libatomic(), _run_dir(run_dir)]


def _kvm() -> list[Finding]:
    try:
        fd = os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        cure = "load it with: sudo modprobe kvm_intel (or kvm_amd); inside a VM, enable nested virtualization"
        return [Finding("FAIL", f"{KVM} is missing: {cure}")]
    except PermissionError:
        cure = f"join its group with: sudo usermod -aG kvm {getpass.getuser()}, then log in again"
        return [Finding("FAIL", f"{KVM} is not readable and writable: {cure}")]
    except OSError as fault:
        return [Finding("FAIL", f"{KVM} cannot be opened: {fault.strerror}: is the kvm module loaded?")]
    found = [Finding("ok", f"{KVM} readable and writable")]
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
        if version != 12:
            return [Finding("FAIL", f"{KVM} has API version {version}, not 12: use a Linux kernel's KVM")]
        return [*found, _xen_bits(fcntl.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM))]
    except OSError as fault:
        return [Finding("FAIL", f"{KVM} is no KVM: {fault.strerror}")]
    finally:
        os.close(fd)


def _xen_bits(bits: int) -> Finding:
    missing = ", ".join(name for bit, name in XEN_BITS.items() if not bits & bit)
    if missing:
        cure = "use a kernel with CONFIG_KVM_XEN (Linux 5.19 or newer; Debian 13's has it)"
        return Finding("FAIL", f"KVM_CAP_XEN_HVM {bits:#x} lacks {missing}: {cure}")
    return Finding("ok", f"KVM_CAP_XEN_HVM {bits:#x} ({', '.join(XEN_BITS.values())})")


def _shim() -> Finding:
    from xenpvd.errors import ImageError
    from xenpvd.vmm.boot import find_shim

    try:
        return Finding("ok", f"xen-shim {find_shim('auto')}")
    except ImageError as fault:
        return Finding("FAIL", str(fault))


def _huge_pages() -> Finding:
    try:
        setting = THP.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return Finding("warn", f"no transparent huge pages ({THP} is missing): guests run with 4 KiB pages")
    if setting == "never":
        return Finding("warn", f"transparent huge pages are off: guests run slower; echo madvise > {THP}")
    return Finding("ok", f"transparent huge pages: {setting}")


def _python() -> Finding:
    return Finding("ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}")  # the wheel asks for 3.11


def _uvloop() -> Finding:
    if importlib.util.find_spec("uvloop") is None:
        return Finding("warn", "uvloop is not installed: use --loop asyncio, or: pip install uvloop")
    return Finding("ok", "uvloop")


def _libatomic() -> Finding:
    try:
        ctypes.CDLL("libatomic.so.1")
    except OSError:
        return Finding(
            "FAIL", "libatomic.so.1 cannot be loaded: install it with: sudo apt install libatomic1"
        )
    return Finding("ok", "libatomic.so.1")


def _run_dir(path: Path) -> Finding:
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(
            "FAIL", f"{path} cannot be written to: choose another with --run-dir or XENPVD_RUN_DIR"
        )
    if len(os.fsencode(path / ("x" * 63) / "rpc.sock")) > 107:
        return Finding("warn", f"{path} is long: guests with long names get no socket (at most 107 bytes)")
    return Finding("ok", f"{path} {'writable' if place == path else 'can be made'}")
