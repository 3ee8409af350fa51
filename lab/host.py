"""The lab host: a Debian kernel with KVM's Xen support, run by QEMU's emulator on any machine.

Its root is this machine's own file system under a throw-away overlay. It stays up until ``down``; a lock that
QEMU inherits says whether it lives, so no pid is ever guessed at.
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
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.cpio import Cpio
from lab.guest import tool
from lab.modules import load_order
from lab.packages import LAB_KERNEL, only
from lab.paths import asset, cache, locked
from lab.progress import LabError, step
from lab.wire import PORT, READY

HERE = Path(__file__).parent
CODE = ("__init__.py", "kvm.py", "serve.py", "wire.py")
MODULES = ("9pnet_virtio", "9p", "overlay", "virtio_net", "kvm_amd", "loop", "tun")
BOOT_LIMIT = 300.0
CPUS = 2
MEMORY_MIB = 4096


@dataclass(frozen=True)
class Host:
    """A lab host that takes jobs."""

    pid: int
    port: int
    token: str
    code: str = ""
    """a digest of what it was booted from"""


def folder() -> Path:
    """The state folder: locks, QEMU's log, the console's log. Only its owner can read it (the token)."""
    path = cache() / "lab"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def running() -> Host | None:
    """The lab host that is up, None if there is none."""
    with locked(folder() / "lock"):
        return _running()


def up() -> Host:
    """The lab host, started if there is none. Raises LabError if it does not come up."""
    with locked(folder() / "lock"):
        host = _running()
        if host and host.code != _code():
            with step("stop", "lab host (its code is another one by now)"):
                _stop(host)
            host = None
        if host and READY in _console().read_text(errors="replace"):
            return host
        with step("boot", "lab host"):
            host = host or _start()
            try:
                _wait_ready()
            except BaseException:
                _stop(host)
                raise
        return host


def down() -> bool:
    """Stop the lab host, True if there was one."""
    with locked(folder() / "lock"):
        host = _running()
        if host:
            _stop(host)
        return host is not None


def last_words(lines: int = 12) -> str:
    """The end of the lab host's console, and what QEMU said."""
    found = []
    for name in ("console.log", "qemu.log"):
        path = folder() / name
        if path.exists():
            found += path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in found)


def _console() -> Path:
    return folder() / "console.log"


def _running() -> Host | None:
    with (folder() / "alive").open("w") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # QEMU holds the lock that it inherited
            pass
        else:
            return None
    try:
        return Host(**json.loads((folder() / "host.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise LabError(
            f"cannot tell which lab host runs: {folder() / 'host.json'} is no good. "
            f"End the qemu process that holds {folder() / 'alive'} (fuser -k), then try again."
        ) from None


def _stop(host: Host) -> None:
    if _running() is not None:
        os.kill(host.pid, signal.SIGKILL)
    with (folder() / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # ours once it is gone
    (folder() / "host.json").unlink(missing_ok=True)


def _code() -> str:
    """A digest of what a lab host is booted from: a warm one of another digest is of no use."""
    digest = hashlib.sha256(
        repr((asset(LAB_KERNEL.name, "version").read_text(), MODULES, _python())).encode()
    )
    for path in (*(HERE / name for name in CODE), *sorted((HERE / "host_files").iterdir()), HERE / "host.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _python() -> str:
    return str(Path(sys.executable).resolve())


def _start() -> Host:
    state = folder()
    token = secrets.token_hex(32)
    initrd = state / "initrd"
    initrd.touch(mode=0o600)
    initrd.write_bytes(_initramfs(token))
    _console().write_text("")
    port = _free_port()
    argv = _qemu(only(LAB_KERNEL, "boot/vmlinuz-*"), initrd, _console(), port)
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
    host = Host(qemu.pid, port, token, _code())
    secret.write_text(json.dumps(asdict(host)))
    return host


def _wait_ready() -> None:
    limit = time.monotonic() + BOOT_LIMIT
    while READY not in (said := _console().read_text(errors="replace")):
        if _running() is None:
            raise LabError(f"cannot start the lab host: it ended while booting:\n{last_words()}")
        if time.monotonic() > limit:
            raise LabError(f"cannot start the lab host: not up after {BOOT_LIMIT:.0f} s:\n{last_words()}")
        time.sleep(0.1)
    if f"{READY}, KVM_CAP_XEN_HVM=0x0" in said:
        raise LabError(f"cannot use the lab host: its KVM has no Xen support:\n{last_words()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _initramfs(token: str) -> bytes:
    cpio = Cpio()
    for name in ("dev", "proc", "sys"):
        cpio.folder(name)
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/busybox", Path(tool("busybox")).read_bytes(), 0o755)
    for applet in ("sh", "mount", "insmod", "mkdir", "cp", "ip", "hostname", "switch_root", "poweroff"):
        cpio.symlink(f"bin/{applet}", "busybox")
    [modules] = (only(LAB_KERNEL, "version").parent).glob("usr/lib/modules/*")
    order = load_order(modules, MODULES)
    for name, content in order.items():
        cpio.file(f"modules/{name}.ko", content)
    cpio.file("modules/order", "".join(f"{name}\n" for name in order).encode())
    cpio.file("init", (HERE / "host_files/init").read_bytes(), 0o755)
    cpio.file("lab/start", (HERE / "host_files/start").read_bytes(), 0o755)
    for name in CODE:
        cpio.file(f"lab/code/lab/{name}", (HERE / name).read_bytes())
    cpio.file("lab/token", token.encode(), 0o600)
    cpio.file("lab/python", f"{_python()}\n".encode())
    return cpio.finish()


def _qemu(kernel: Path, initrd: Path, console: Path, port: int) -> list[str]:
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        raise LabError("cannot start the lab host: no qemu-system-x86_64 here. Run make setup.")
    # the lab host is thrown away, its guests are ours: no mitigations; panic=-1 with -no-reboot ends QEMU
    words = "console=ttyS0 quiet mitigations=off nokaslr audit=0 panic=-1 random.trust_cpu=on tsc=reliable"
    # without XSAVE: the emulator's SVM does not intercept XSETBV, so a guest's would change the host's XCR0
    # behind KVM's back, and shim 4.20 and its guest would disagree on the size of the FPU's state
    cpu = "max,+svm,-xsave"
    # one thread for all emulated CPUs: no slower on two cores, and with several the emulator now and then ran
    # a CPU on code or page tables that another had just changed (int3 oopses, corrupted stacks)
    forward = f"hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{PORT}"
    return [
        emulator,
        *("-name", "xenpvd-lab", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *(
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=single",
            "-cpu",
            cpu,
            "-smp",
            str(CPUS),
            "-m",
            str(MEMORY_MIB),
        ),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", words),
        *("-serial", f"file:{console}"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=lab-root"),
        *("-netdev", f"user,id=net,restrict=on,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="),
    ]
