"""The demo guest under xenpvd and under QEMU's Xen emulation, to be driven the same way by the benchmarks."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import qemu
from lab.guest import PROMPT, READY
from lab.progress import LabError
from xenpvd.ctl.client import Client

LIMIT = 300
START_LIMIT = 60
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

    def ping(self) -> None:
        """Ask the VMM for something that it knows, and wait for the answer."""
        raise NotImplementedError

    def plug(self, path: Path) -> None:
        """Add ``path`` as xvdz; returns when the VMM says so."""
        raise NotImplementedError

    def unplug(self) -> None:
        """Take xvdz away; returns when the guest has let go of it."""
        raise NotImplementedError

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


def until(fd: int, text: bytes, said: bytes = b"") -> tuple[bytes, int]:
    """Read the console until ``text`` has come, after ``said``; what came behind it, and how many bytes."""
    count = 0
    while text not in said:
        if not (data := os.read(fd, 1 << 16)):
            raise LabError("the console ended")
        count += len(data)
        said = said[-len(text) :] + data
    return said.partition(text)[2], count


class Xenpvd(Guest):
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

    def ping(self) -> None:
        self.client.call("daemon.ping", {})

    def plug(self, path: Path) -> None:
        self.client.call("drive.add", {"vdev": "xvdz", "target": str(path), "timeout": LIMIT})

    def unplug(self) -> None:
        self.client.call("drive.remove", {"vdev": "xvdz", "timeout": LIMIT})

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
            *("-qmp", "unix:qmp.sock,server=on,wait=off"),
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
        try:
            self.monitor = qemu.Monitor(self.folder / "qmp.sock", START_LIMIT)
        except OSError as fault:
            raise LabError(f"QEMU has no monitor after {START_LIMIT} s: {fault}") from None

    def expect(self, text: str) -> str:
        assert self.process is not None and self.process.stdout is not None
        limit = time.monotonic() + LIMIT
        while text not in self.said:
            left = max(0.0, limit - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise LabError(f"QEMU's guest did not say {text!r} in {LIMIT} s, but:\n{self.said}")
            if not (data := os.read(self.process.stdout.fileno(), 65536)):
                raise LabError(f"QEMU ended early:\n{self.said}")
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

    def ping(self) -> None:
        self.monitor.call(qemu.PING)

    def plug(self, path: Path) -> None:
        file = {"driver": "file", "filename": str(path)}
        self.monitor.call("blockdev-add", **{"node-name": "z", "driver": "raw", "file": file})
        self.monitor.call("device_add", driver="xen-disk", vdev="xvdz", id="z", drive="z")

    def unplug(self) -> None:
        self.monitor.call("device_del", id="z")
        self.monitor.expect("DEVICE_DELETED", device="z")
        self.monitor.call("blockdev-del", **{"node-name": "z"})

    def end(self) -> None:
        assert self.process is not None
        self.process.communicate(timeout=LIMIT)
        self.monitor.close()


class QemuUring(Qemu):
    """QEMU's xen-block at its best: by io_uring, in a thread of its own."""

    drive = ",aio=io_uring"
    device = ",iothread=io0"
    options = ("-object", "iothread,id=io0")


#: by their names in the results
PEERS: dict[str, type[Guest]] = {"xenpvd": Xenpvd, "qemu": Qemu, "qemu-uring": QemuUring}
