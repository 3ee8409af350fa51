"""The tour: boot the demo guest under xenpvd and show what it can do, one line a step, all by xenpvctl."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lab import guest

NAME = "demo"
MAGIC = "This line was read from a disk that was added while the guest ran."
WRITTEN = "The guest wrote this line."


class StepFailed(Exception):
    """A step of the tour that did not go as it should."""


class Tour:
    """One guest, from its start to its end. ``folder`` is its own; the daemon's sockets are in it, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begin = time.monotonic()
        self.image = folder / "xvda.img"
        self.second = folder / "xvdb.img"
        shutil.copyfile(guest.disk(), self.image)
        self.second.write_bytes((MAGIC + "\n").encode().ljust(1 << 20, b"\0"))
        self.definition = folder / f"{NAME}.toml"
        self.definition.write_text(guest.toml(guest.definition(self.image)))

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """Print the step's line with its time; what the body appends is said after it."""
        said: list[str] = []
        start = time.monotonic()
        try:
            yield said
        except StepFailed as fault:
            print(f"FAIL  {what}: {fault}", flush=True)
            raise
        took = time.monotonic() - start
        note = f"  {said[0]}" if said else ""
        print(f"ok    {what:<38}{took:6.2f} s{note}", flush=True)

    def ctl(self, *argv: str, limit: float = 180) -> str:
        """Run xenpvctl; its output, or StepFailed with what it says."""
        command = [sys.executable, "-m", "xenpvd.ctl.cli", "--run-dir", str(self._folder / "run"), *argv]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            raise StepFailed(f"xenpvctl {argv[0]} has not ended after {limit:g} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise StepFailed(f"xenpvctl {argv[0]}: {said}")
        return done.stdout

    def call(self, method: str, **params: Any) -> Any:
        pairs = [f"{key}={value}" for key, value in params.items()]
        return json.loads(self.ctl("call", NAME, method, *pairs, "--json"))

    def wait(self, what: str, limit: float = 120) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("guest.wait", **{"for": what, "timeout": limit})
        return answer

    def type(self, line: str, answer: str) -> None:
        """Type ``line`` and wait for ``answer``, which must not stand in the line itself."""
        assert answer not in line
        since = self.call("console.read", since=-1)["end"]
        self.call("console.write", text=line + "\n")
        self.call("guest.wait", **{"for": f"console:{answer}", "timeout": 60, "since": since})

    def console(self) -> None:
        """The person's turn, at a fresh prompt: the boot's messages are not shown again."""
        since = self.call("console.read", since=-1)["end"]
        self.call("console.write", text="\n")
        print(
            "\nYou are at the guest's shell: try ls /mnt, or head -c 67 /dev/xvdb. ^] leaves.\n", flush=True
        )
        command = [sys.executable, "-m", "xenpvd.ctl.cli", "--run-dir", str(self._folder / "run")]
        subprocess.run([*command, "console", NAME, "--steal", "--since", str(since)], check=False)
        print()

    def alive(self) -> bool:
        try:
            return bool(self.call("guest.status")["state"] == "running")
        except StepFailed:
            return False

    def last_words(self) -> None:
        """What the guest and the shim printed last, and what to do."""
        for console in ("0", "xen"):
            try:
                text = self.ctl("log", NAME, "--console", console)
            except StepFailed:
                continue
            print(f"--- the last lines of console {console}:\n" + "\n".join(text.splitlines()[-15:]))
        log = self._folder / "run" / NAME / "xenpvd.log"
        if log.exists():
            print("--- the daemon's log:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        print("--- What to do: .venv/bin/xenpvctl doctor; in the lab make lab-down; then try again.")

    def end(self) -> None:
        """Nothing of the guest is left, whatever happened."""
        with suppress(StepFailed):
            self.ctl("destroy", NAME, limit=30)
        shutil.rmtree(self._folder, ignore_errors=True)


def _steps(tour: Tour, person: bool) -> None:
    with tour.step("daemon answers") as said:
        tour.ctl("start", str(tour.definition), "--wait", "created")
        info = tour.call("daemon.info")
        said.append(f"xenpvd {info['version']}, pid {info['pid']}, {info['loop']}")
    with tour.step("shim up") as said:
        said.append("xen-shim of " + Path(tour.wait("shim")["shim"]).parts[-3])
    with tour.step("Linux up"):
        tour.wait("kernel")
    with tour.step("xenbus connected"):
        tour.wait("xenbus")
    with tour.step("xvda mounted, a file on it read") as said:
        tour.wait(f"console:{guest.MOUNTED}")
        tour.wait(f"console:{guest.HELLO.strip()}")
        said.append(f"hello.txt: {guest.HELLO.strip()}")
        tour.wait(f"console:{guest.READY}")
    with tour.step("a file written on xvda"):
        tour.type(f"echo '{WRITTEN}' > /mnt/written.txt && sync && echo written-$((6 * 7))", "written-42")
    with tour.step("xvdb hot-added and read by the guest") as said:
        added = json.loads(tour.ctl("drive", "add", NAME, "xvdb", str(tour.second), "--json"))
        tour.type(f"head -c {len(MAGIC) + 1} /dev/xvdb", MAGIC)
        said.append(f"connected in {added['connected_ms']:.0f} ms")
    with tour.step("a command typed, its answer seen") as said:
        tour.type('echo "hypervisor: $(cat /sys/hypervisor/type)"', "hypervisor: xen")
        said.append("cat /sys/hypervisor/type: xen")
    with tour.step("xenstore listed") as said:
        nodes = tour.ctl("xenstore-ls", NAME, "/").splitlines()
        if not any("feature-poweroff" in node for node in nodes):
            raise StepFailed("the guest's control/feature-poweroff is not in it:\n" + "\n".join(nodes))
        said.append(f"{len(nodes)} nodes")
    status = tour.call("guest.status")
    if person:
        tour.console()
    if tour.alive():
        with tour.step("guest shut down through xenstore") as said:
            ended = json.loads(tour.ctl("shutdown", NAME, "--timeout", "60", "--json"))
            if ended["acknowledged"] is None:
                raise StepFailed("it ended without clearing control/shutdown")
            said.append(
                f"acknowledged after {ended['acknowledged']:.2f} s, gone after {ended['stopped']:.2f} s"
            )
    with tour.step("what it wrote is in the image"):
        found = guest.read_file(tour.image, "/written.txt").decode()
        if found != WRITTEN + "\n":
            raise StepFailed(f"written.txt holds {found!r}")
    counts = f"{status['hypercalls']}, and {status['log_writes']} pieces of the shim's log"
    print(f"\nHypercalls that reached Python: {counts}. Memory: {status['host']['pages']} pages.")


def tour(person: bool) -> int:
    """Run it all; 0, or 1 after saying what went wrong."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-demo-", dir=shm if shm.is_dir() else None))
    this = Tour(folder)
    try:
        _steps(this, person)
    except StepFailed:
        this.last_words()
        return 1
    finally:
        this.end()
    return 0
