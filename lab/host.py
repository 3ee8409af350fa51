"""Lab hosts: Debian kernels with KVM, run by QEMU's emulator on any machine.

Each kind has a state folder of its own: "xen" has KVM's Xen support, "xen2" is another of these, "plain" has
no such support. Their root is this machine's own file system under a throw-away overlay. A host stays up
until ``down``; a lock that QEMU inherits says whether it lives, so no pid is ever guessed at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.cpio import Cpio
from lab.guest import tool
from lab.packages import LAB_KERNELS, only
from lab.paths import CHECKOUT, cache, locked
from lab.progress import LabError, step
from lab.wire import PORT, READY

HERE = Path(__file__).parent
CODE = ("__init__.py", "kvm.py", "serve.py", "wire.py")
KERNELS = {**LAB_KERNELS, "xen2": LAB_KERNELS["xen"]}
KINDS = tuple(KERNELS)
BOOT_LIMIT = 300.0
#: what a host may grow to: one test's guest has more than 4 GiB; and what it cannot do without
MEMORY_MIB, MEMORY_MIN_MIB = 8192, 2048


@dataclass(frozen=True)
class Host:
    """A lab host that takes jobs."""

    kind: str
    pid: int
    port: int
    token: str
    code: str = ""
    """a digest of what it was booted from"""


def folder(kind: str) -> Path:
    """The state folder: locks, QEMU's log, the console's log. Only its owner can read it (the token)."""
    path = cache() / "lab" / kind
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


@contextmanager
def in_use(kind: str, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Held by each job; alone (LOCK_EX) by what would end them all without being asked to."""
    with locked(folder(kind) / "jobs", how):
        yield


def running(kind: str) -> Host | None:
    """The lab host of this kind that is up, None if there is none."""
    with locked(folder(kind) / "lock"):
        return _running(kind)


def up(kind: str) -> Host:
    """The lab host, started if there is none. Raises LabError if it does not come up."""
    with locked(folder(kind) / "lock"):
        host = _running(kind)
        if host and host.code != _code():
            with (
                in_use(kind, fcntl.LOCK_EX),
                step("stop", f"lab host ({kind}; what it was made of has changed)"),
            ):
                _stop(host)
            host = None
        if host and READY in _console(kind).read_text(errors="replace"):
            return host
        with step("boot", f"lab host ({kind})"):
            host = host or _start(kind)
            try:
                _wait_ready(kind)
            except BaseException:
                _stop(host)
                raise
        return host


def down(kind: str) -> bool:
    """Stop the lab host, True if there was one."""
    with locked(folder(kind) / "lock"):
        host = _running(kind)
        if host:
            _stop(host)
        return host is not None


def last_words(kind: str, lines: int = 12) -> str:
    """The end of the lab host's console, and what QEMU said."""
    found = []
    for name in ("console.log", "qemu.log"):
        path = folder(kind) / name
        if path.exists():
            found += path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in found)


def _console(kind: str) -> Path:
    return folder(kind) / "console.log"


def _running(kind: str) -> Host | None:
    state = folder(kind)
    with (state / "alive").open("w") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # QEMU holds the lock that it inherited
            pass
        else:
            return None
    try:
        return Host(**json.loads((state / "host.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise LabError(
            f"cannot tell which lab host runs: {state / 'host.json'} is no good. "
            f"End the qemu process that holds {state / 'alive'} (fuser -k), then try again."
        ) from None


def _stop(host: Host) -> None:
    state = folder(host.kind)
    if _running(host.kind) is not None:
        os.kill(host.pid, signal.SIGKILL)
    with (state / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # ours once it is gone
    (state / "host.json").unlink(missing_ok=True)


def _code() -> str:
    """A digest of what a lab host is booted from, and of what it may have read and keep in its own cache, the
    assets and the venv: a warm one of another digest is of no use."""
    digest = hashlib.sha256(_python().encode())
    assets = [*(cache() / "assets").glob("*/version"), *CHECKOUT.glob(".venv/xenpvd-stamp")]
    lab = (*(HERE / name for name in CODE), *sorted((HERE / "host_files").iterdir()), HERE / "host.py")
    for path in (*sorted(assets), *lab):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _python() -> str:
    return str(Path(sys.executable).resolve())


def available(meminfo: str) -> int:
    """MiB that a machine with this /proc/meminfo can still give."""
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) // 1024


def memory(meminfo: str) -> int:
    """MiB for a lab host on a machine with this /proc/meminfo. It takes them only as they are touched.

    Raises LabError if there are too few.
    """
    free = available(meminfo)
    if free < MEMORY_MIN_MIB:
        raise LabError(
            f"cannot start the lab host: it needs {MEMORY_MIN_MIB} MiB of memory, "
            f"{free} MiB are available here. Stop something large (another lab host?), then try again."
        )
    if free < MEMORY_MIB:
        say = f"{free} MiB of memory are available, {MEMORY_MIB} wanted: large guests will not fit"
        print(f"note  lab host: {say}", file=sys.stderr, flush=True)
    return min(free, MEMORY_MIB)


def _start(kind: str) -> Host:
    state = folder(kind)
    token = secrets.token_hex(32)
    initrd = state / "initrd"
    initrd.touch(mode=0o600)
    initrd.write_bytes(_initramfs(kind, token))
    _console(kind).write_text("")
    port = _free_port()
    argv = _qemu(kind, initrd, port, memory(Path("/proc/meminfo").read_text()))
    secret = state / "host.json"
    secret.touch(mode=0o600)
    with (state / "alive").open("w") as alive, (state / "qemu.log").open("wb") as log:
        fcntl.flock(alive, fcntl.LOCK_EX)
        qemu = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(alive.fileno(),),
        )
    host = Host(kind, qemu.pid, port, token, _code())
    secret.write_text(json.dumps(asdict(host)))
    return host


def _wait_ready(kind: str) -> None:
    limit = time.monotonic() + BOOT_LIMIT
    while READY not in (said := _console(kind).read_text(errors="replace")):
        if _running(kind) is None:
            raise LabError(f"cannot start the lab host: it ended while booting:\n{last_words(kind)}")
        if time.monotonic() > limit:
            raise LabError(f"cannot start the lab host: not up after {BOOT_LIMIT:.0f} s:\n{last_words(kind)}")
        time.sleep(0.1)
    xen = KERNELS[kind] is LAB_KERNELS["xen"]
    if (f"{READY}, KVM_CAP_XEN_HVM=0x0" in said) == xen:
        has = "no Xen support" if xen else "Xen support"
        raise LabError(f"cannot use the lab host ({kind}): its KVM has {has}:\n{last_words(kind)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _initramfs(kind: str, token: str) -> bytes:
    cpio = Cpio()
    for name in ("dev", "proc", "sys"):
        cpio.folder(name)
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/busybox", Path(tool("busybox")).read_bytes(), 0o755)
    for applet in ("sh", "mount", "insmod", "mkdir", "cp", "ip", "hostname", "switch_root", "poweroff"):
        cpio.symlink(f"bin/{applet}", "busybox")
    for path in sorted(only(KERNELS[kind], "modules").iterdir()):
        cpio.file(f"modules/{path.name}", path.read_bytes())
    cpio.file("init", (HERE / "host_files/init").read_bytes(), 0o755)
    cpio.file("lab/start", (HERE / "host_files/start").read_bytes(), 0o755)
    for name in CODE:
        cpio.file(f"lab/code/lab/{name}", (HERE / name).read_bytes())
    cpio.file("lab/token", token.encode(), 0o600)
    cpio.file("lab/python", f"{_python()}\n".encode())
    return cpio.finish()


def _qemu(kind: str, initrd: Path, port: int, mib: int) -> list[str]:
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        raise LabError("cannot start the lab host: no qemu-system-x86_64 here. Run make setup.")
    kernel = only(KERNELS[kind], "boot/vmlinuz-*")
    # the lab host is thrown away, its guests are ours: no mitigations; panic=-1 with -no-reboot ends QEMU
    words = "console=ttyS0 quiet mitigations=off nokaslr audit=0 panic=-1 random.trust_cpu=on tsc=reliable"
    # without XSAVE: the emulator's SVM does not intercept XSETBV, so a guest's would change the host's XCR0
    # behind KVM's back, and shim 4.20 and its guest would disagree on the size of the FPU's state
    # without CMPXCHG16B: an interrupt right after one can find garbage in the emulator's flags, the trap flag
    # too, and they stay (seen in guests with Linux 6.12: #DB in the allocator, then oopses)
    # without ERMS: with it kernels copy by REP MOVSB, emulated by bytes; their loops are 3-4 times as fast
    cpu = "max,+svm,-xsave,-cx16,-erms"
    # one CPU: with a thread for each of several, the emulator now and then ran one on code or page tables
    # that another had just changed (int3 oopses, corrupted stacks). With one thread for all, they take turns,
    # and when a turn ends just behind a VMRUN that injects an interrupt, it is injected twice (helper_vmrun
    # leaves exception_index set): in a PVH guest's Linux the second comes before SWAPGS: a double fault
    forward = f"hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{PORT}"
    return [
        emulator,
        *("-name", f"xenpvd-lab-{kind}", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=single", "-cpu", cpu, "-smp", "1", "-m", str(mib)),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", words),
        *("-serial", f"file:{_console(kind)}"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=lab-root"),
        *("-netdev", f"user,id=net,restrict=on,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="),
    ]
