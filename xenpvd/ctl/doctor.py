"""What a host needs to run guests, each thing with its cure."""

from __future__ import annotations

import ctypes
import fcntl
import getpass
import importlib.util
import os
import shutil
import sys
from contextlib import suppress
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
#: What the accelerator kvm-xen needs of KVM_CAP_XEN_HVM.
XEN_BITS = {
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL: "hypercall exits",
    KVM_XEN_HVM_CONFIG_SHARED_INFO: "shared info",
    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL: "2-level events",
    KVM_XEN_HVM_CONFIG_EVTCHN_SEND: "event send",
}
#: Hardware virtualization: what the CPU calls it, and its KVM.
VIRTUALIZATION = {"vmx": "kvm_intel", "svm": "kvm_amd"}
CPUINFO = Path("/proc/cpuinfo")
MODULES = Path("/sys/module")
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Finding(NamedTuple):
    """``verdict`` is ok, note (who wants it knows), warn or FAIL."""

    verdict: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<5} {self.text}"


def examine(run_dir: Path) -> list[Finding]:
    """Everything that there is to say."""
    return [
        *_kvm(),
        _shim(),
        _grub(),
        _huge_pages(),
        _python(),
        _uvloop(),
        _libatomic(),
        _engine(),
        _run_dir(run_dir),
    ]


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
        hardware = _hardware()
        bits = fcntl.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM)
        return [*found, hardware, *_accel(bits, hardware.verdict == "ok")]
    except OSError as fault:
        return [Finding("FAIL", f"{KVM} is no KVM: {fault.strerror}")]
    finally:
        os.close(fd)


def _hardware() -> Finding:
    flags = CPUINFO.read_text().partition("\nflags")[2].partition("\n")[0].split()
    for flag, module in VIRTUALIZATION.items():
        if flag in flags:
            if (MODULES / module).exists():
                return Finding("ok", f"hardware virtualization: {flag}, {module}")
            return Finding("FAIL", f"{module} is not loaded: load it with: sudo modprobe {module}")
    cure = "enable it in the firmware; inside a VM, enable nested virtualization on its host"
    return Finding("FAIL", f"no hardware virtualization: the CPU has neither vmx nor svm: {cure}")


def _accel(bits: int, hardware: bool) -> list[Finding]:
    """What ``accel = "auto"`` takes."""
    said = f"KVM_CAP_XEN_HVM {bits:#x}"
    missing = ", ".join(name for bit, name in XEN_BITS.items() if not bits & bit)
    if not missing:
        why = "KVM's own Xen support; kvm, without it, can be asked for"
        return [
            Finding("ok", f"{said} ({', '.join(XEN_BITS.values())})"),
            Finding("ok", f"accelerator: kvm-xen ({why})"),
        ]
    cure = "Linux 5.19 or newer with CONFIG_KVM_XEN has it, as Debian 13's"
    found = Finding("warn", f"{said} lacks {missing}: no accelerator kvm-xen; {cure}")
    if not hardware:
        return [found, Finding("FAIL", "accelerator: none (kvm needs hardware virtualization: see above)")]
    return [found, Finding("ok", "accelerator: kvm (xenpvd does what KVM lacks, more slowly)")]


def _shim() -> Finding:
    from xenpvd.errors import XenpvdError

    try:
        from xenpvd.vmm.boot import find_shim  # fails without libatomic

        return Finding("ok", f"xen-shim {find_shim('auto')}")
    except XenpvdError as fault:
        return Finding("FAIL", str(fault))


def _grub() -> Finding:
    from xenpvd.errors import XenpvdError

    found = []
    for kind in ("pv", "pvh"):
        with suppress(XenpvdError):
            from xenpvd.vmm.boot import find_grub

            found.append(f"{find_grub(kind)} ({kind})")
    use = 'kernel = "pvgrub"'
    if not found:
        return Finding("note", f"no GRUB for {use}; it comes with: sudo apt install grub-xen-host")
    return Finding("ok", f"GRUB for {use}: {', '.join(found)}")


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


def _engine() -> Finding:
    use = "images of other formats than raw, and NBD"
    if (program := shutil.which("qemu-storage-daemon")) is None:
        cure = "sudo apt install qemu-utils (in bookworm qemu-system-common)"
        return Finding("note", f"no qemu-storage-daemon, for {use}; it comes with: {cure}")
    return Finding("ok", f"{program}, for {use}")


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
