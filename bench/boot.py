"""From nothing to the guest's shell and to power-off: xenpvd beside QEMU's Xen emulation.

    python -m lab run -- python -m bench.boot [--qemu PATH] [--rounds N]

Same shim, kernel, ramdisk, disk, memory; by turns. CPU is user + system time of the VMM's processes, its
vCPUs included, which under load compares better than wall time. Needs QEMU 8 or newer.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab import guest
from xenpvd.ctl.client import Client

LIMIT = 300
COLUMNS = ("start", "boot", "prompt", "end", "CPU")


#: Seconds until the VMM has started the guest, until the guest's prompt, and until it has ended.
Times = tuple[float, float, float]


def xenpvd(folder: Path, disk: Path) -> Times:
    definition = folder / "bench.toml"
    definition.write_text(guest.toml(guest.definition(disk)))
    notify = folder / "notify"
    command = [sys.executable, "-m", "xenpvd", "--config", str(definition), "--run-dir", str(folder)]

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(notify))
        begin = time.monotonic()
        environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
            ready.recv(64)
            started = time.monotonic() - begin
            notify.unlink()
            with Client.connect(folder / "bench" / "rpc.sock", LIMIT) as client:
                client.call("guest.wait", {"for": f"console:{guest.PROMPT}", "timeout": LIMIT})
                prompt = time.monotonic() - begin
                client.call("console.write", {"text": "poweroff\n"})
            process.wait(LIMIT)
    return started, prompt, time.monotonic() - begin


def qemu(program: str) -> Callable[[Path, Path], Times]:
    def run(folder: Path, disk: Path) -> Times:
        asked = guest.definition(disk)
        command = [
            program,
            *("-accel", "kvm,xen-version=0x40011,kernel-irqchip=split", "-m", str(asked["memory"])),
            *("-nodefaults", "-nic", "none", "-display", "none", "-no-reboot"),
            *("-chardev", "stdio,id=c0", "-device", "xen-console,chardev=c0"),
            *("-drive", f"file={disk},if=xen,format=raw"),
            *("-kernel", asked["shim"]["path"], "-append", "shim pv-shim console=xen"),
            *("-initrd", f"{asked['kernel']} {asked['cmdline']},{asked['ramdisk']}"),
        ]
        begin = time.monotonic()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            said = b""
            while guest.PROMPT.encode() not in said:
                if not select.select([process.stdout], [], [], LIMIT)[0]:
                    sys.exit(f"QEMU's guest said nothing for {LIMIT} s:\n{said.decode('utf-8', 'replace')}")
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    sys.exit(f"QEMU ended early:\n{said.decode('utf-8', 'replace')}")
                said += data
            prompt = time.monotonic() - begin
            process.stdin.write(b"poweroff\n")
            process.stdin.flush()
            process.communicate(timeout=LIMIT)
        return 0.0, prompt, time.monotonic() - begin  # QEMU does not tell; it takes tens of milliseconds

    return run


def measure(run: Callable[[Path, Path], Times]) -> list[float]:
    """The ``COLUMNS`` of one run."""
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-bench-", dir="/dev/shm"))
    try:
        disk = folder / "xvda.img"
        shutil.copyfile(guest.disk(), disk)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started, prompt, end = run(folder, disk)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [started, prompt - started, prompt, end, cpu]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    peers = {"xenpvd": xenpvd, "qemu": qemu(options.qemu)}
    results: dict[str, list[list[float]]] = {name: [] for name in peers}
    for number in range(options.rounds):
        for name, run in peers.items():
            results[name].append(measure(run))
            row = "".join(f"{value:8.2f}" for value in results[name][-1])
            print(f"round {number + 1} {name:<8}{row}", flush=True)
    print(f"{'median of s':<16}" + "".join(f"{column:>8}" for column in COLUMNS))
    medians = {
        name: [statistics.median(row[column] for row in rows) for column in range(len(COLUMNS))]
        for name, rows in results.items()
    }
    for name, values in medians.items():
        print(f"{name:<16}" + "".join(f"{value:8.2f}" for value in values))
    pairs = zip(medians["xenpvd"], medians["qemu"], strict=True)
    ratios = (f"{mine / theirs:8.2f}" if theirs else f"{'-':>8}" for mine, theirs in pairs)
    print(f"{'xenpvd / qemu':<16}" + "".join(ratios))


if __name__ == "__main__":
    main()
