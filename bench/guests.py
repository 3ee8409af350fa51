"""The demo guest under xenpvd and under QEMU's Xen emulation, to be driven the same way by the benchmarks."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import fio, jobs, kvm, packages
from lab.guest import PROMPT, READY
from lab.paths import asset
from lab.progress import LabError
from xenpvd import __version__
from xenpvd.ctl.client import Client

LIMIT = 300
#: QEMU plays Xen since 8.0, its disks since 8.2
QEMU_MIN = (8, 2)
TICK = os.sysconf("SC_CLK_TCK")


class Guest:
    """One guest with its VMM: started, spoken to on its console, ended."""

    def __init__(self, folder: Path, definition: dict[str, Any], disks: Sequence[Path]) -> None:
        """``disks`` are xvda, xvdb and so on, whatever disks ``definition`` has."""
        self.folder = folder
        self.definition = {key: value for key, value in definition.items() if key != "disk"}
        self.disks = disks
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the VMM; QEMU does not tell when it is ready, which takes it tens of milliseconds."""
        raise NotImplementedError

    def expect(self, text: str) -> str:
        """Wait for ``text`` on the console; what came since the last wait, to the end of ``text``."""
        raise NotImplementedError

    def type(self, text: str) -> None:
        raise NotImplementedError

    def attach(self) -> int:
        """From where all that the console prints can be read, until :meth:`detach`; nobody expects then."""
        raise NotImplementedError

    def detach(self) -> None:
        pass

    def cpu(self) -> tuple[float, float]:
        """Seconds of CPU that the VMM's process has used, and those of them outside of the guest."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        user, system, guest = (int(stat[index]) / TICK for index in (11, 12, 40))
        return user + system, user + system - guest

    def end(self) -> None:
        """Wait until it has ended: to be asked for on the console before."""
        assert self.process is not None
        self.process.wait(LIMIT)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def at_the_shell(one: Guest) -> Iterator[Guest]:
    """The guest booted and quiet at its shell; it is shut down in the end."""
    try:
        one.start()
        one.expect(READY)
        one.type("dmesg -n 1\n")
        one.expect(PROMPT)
        yield one
        one.type("poweroff\n")
        one.end()
    finally:
        one.kill()


class Xenpvd(Guest):
    version = f"xenpvd {__version__}"

    def start(self) -> None:
        from lab import guest

        file = self.folder / "bench.toml"
        disk = [{"vdev": f"xvd{chr(ord('a') + n)}", "target": str(path)} for n, path in enumerate(self.disks)]
        file.write_text(guest.toml({**self.definition, "disk": disk}))
        notify = self.folder / "notify"
        command = [sys.executable, "-m", "xenpvd", "--config", str(file), "--run-dir", str(self.folder)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(notify))
            environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
            self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
            ready.settimeout(LIMIT)
            ready.recv(64)
        self.client = Client.connect(self.folder / "bench" / "rpc.sock", LIMIT)
        self.at = 0
        self.viewer: socket.socket | None = None

    def expect(self, text: str) -> str:
        until = {"for": f"console:{text}", "timeout": LIMIT, "since": self.at}
        self.client.call("guest.wait", until)
        said = ""
        while text not in said:
            chunk = self.client.call("console.read", {"since": self.at, "max": 65536})
            said += chunk["text"]
            self.at = chunk["end"]
        said, _, rest = said.partition(text)
        self.at -= len(rest.encode())
        return said

    def type(self, text: str) -> None:
        if self.viewer is None:
            self.client.call("console.write", {"text": text})
        else:
            self.viewer.sendall(text.encode())

    def attach(self) -> int:
        self.client.call("console.clear", {})
        self.viewer = socket.socket(socket.AF_UNIX)
        self.viewer.connect(str(self.folder / "bench" / "console0.sock"))
        return self.viewer.fileno()

    def detach(self) -> None:
        assert self.viewer is not None
        self.viewer.close()
        self.viewer = None
        while self.client.call("console.viewers", {}):
            time.sleep(0.01)

    def end(self) -> None:
        self.client.close()
        super().end()


class Qemu(Guest):
    """QEMU's xen-block as it is by default: with a pool of threads."""

    #: the command that starts it
    program: tuple[str, ...] = ()
    #: more words for each disk
    drive = ""
    device = ""
    options: tuple[str, ...] = ()

    def start(self) -> None:
        asked = self.definition
        command = [
            *self.program,
            *("-accel", "kvm,xen-version=0x40011,kernel-irqchip=split", "-m", str(asked["memory"])),
            *("-smp", str(asked["vcpus"])),
            *("-nodefaults", "-nic", "none", "-display", "none", "-no-reboot"),
            *("-chardev", "stdio,id=c0", "-device", "xen-console,chardev=c0", *self.options),
            *("-kernel", asked["shim"]["path"], "-append", "shim pv-shim console=xen"),
            *("-initrd", f"{asked['kernel']} {asked['cmdline']},{asked['ramdisk']}"),
        ]
        for number, path in enumerate(self.disks):
            command += ["-drive", f"file={path},format=raw,if=none,id=d{number}{self.drive}"]
            command += ["-device", f"xen-disk,vdev=xvd{chr(ord('a') + number)},drive=d{number}{self.device}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder
        )
        self.said = ""

    def expect(self, text: str) -> str:
        assert self.process is not None and self.process.stdout is not None
        limit = time.monotonic() + LIMIT
        while text not in self.said:
            left = max(0.0, limit - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                sys.exit(f"QEMU's guest did not say {text!r} in {LIMIT} s, but:\n{self.said}")
            if not (data := os.read(self.process.stdout.fileno(), 65536)):
                sys.exit(f"QEMU ended early:\n{self.said}")
            self.said += data.decode("latin-1")
        said, _, self.said = self.said.partition(text)
        return said

    def attach(self) -> int:
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.fileno()

    def type(self, text: str) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process is not None
        self.process.communicate(timeout=LIMIT)


class QemuUring(Qemu):
    """QEMU's xen-block at its best: by io_uring, in a thread of its own."""

    drive = ",aio=io_uring"
    device = ",iothread=io0"
    options = ("-object", "iothread,id=io0")


def qemu_version(command: Sequence[str]) -> str:
    """As "10.0.2"; nothing if it cannot be run."""
    if not command or shutil.which(command[0]) is None:
        return ""
    said = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+\.[\d.]+)", said)
    return found[1] if found else ""


def find_qemu() -> tuple[str, ...]:
    """The command of a QEMU that can play Xen: this machine's own, or Debian's backport in the cache."""
    unpacked = asset("qemu", "usr")
    firmware = ("-L", f"{unpacked}/share/qemu", "-L", f"{unpacked}/share/seabios")
    for command in (("qemu-system-x86_64",), (f"{unpacked}/bin/qemu-system-x86_64", *firmware)):
        version = qemu_version(command)
        if version and tuple(int(part) for part in version.split(".")[:2]) >= QEMU_MIN:
            return command
    return ()


def at_home() -> None:
    """Return where guests can run: here, or in a lab host, in which this very command is then run."""
    if "XENPVD_IN_LAB" not in os.environ:
        try:
            fio.build()
            if not find_qemu():
                packages.install(packages.LAB_PACKAGES)  # for its libraries
                packages.fetch((packages.QEMU,))
            if why := kvm.unfit():
                print(f"The guests run in the lab: {why}.", flush=True)
                module = sys.modules["__main__"].__spec__
                assert module is not None
                sys.exit(jobs.run([sys.executable, "-m", module.name, *sys.argv[1:]]))
        except LabError as fault:
            sys.exit(f"bench: {fault}")
    Qemu.program = find_qemu()
