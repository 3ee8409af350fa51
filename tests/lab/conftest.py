"""Real guests: the real shim, a real Debian kernel, a real disk, driven as an operator would.

They run where /dev/kvm can play Xen: on such a machine, or inside the lab host (``make test`` does it). Those
marked ``plain`` need a KVM without Xen support only, and run on one with it as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import guest as assets
from lab import kvm
from xenpvd.ctl.client import Client, NoAnswer, RpcFault

LIMIT = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = kvm.unfit()
    unfit = f"{why}: make test brings a lab host" if why else ""
    no_xen = unfit or ("" if kvm.xen_hvm() else "/dev/kvm has no Xen support (KVM_CAP_XEN_HVM) here")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT))
            if missing := unfit if item.get_closest_marker("plain") else no_xen:
                item.add_marker(pytest.mark.skip(reason=missing))


class Daemon:
    """One xenpvd process and a connection to it."""

    def __init__(self, folder: Path, definition: dict[str, Any], name: str = "web1") -> None:
        self.folder = folder
        self.name = name
        self.file = folder / f"{name}.toml"
        self.file.write_text(assets.toml(definition))
        self.run_dir = folder / "run"
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Client | None = None
        self._over = threading.Event()
        self._nudger: threading.Thread | None = None

    def start(self, *options: str) -> Daemon:
        """Start it as an operator would, and wait until it is ready."""
        # nobody counts how long Python takes to start in an emulated machine that has other work, too
        options = ("--timeout", str(LIMIT), *options)
        if "--paused" not in options:
            options = ("--wait", "created", *options)
        done = self.ctl("start", str(self.file), *options, limit=LIMIT)
        assert done.returncode == 0, done.stderr + self.log()
        return self.join()

    def join(self) -> Daemon:
        """Connect to it, whoever has started it."""
        self.client = Client.connect(self.run_dir / self.name / "rpc.sock", 30)
        self._nudger = threading.Thread(target=self._nudge, daemon=True)
        self._nudger.start()
        return self

    def _nudge(self) -> None:
        """Raise an event now and then, as long as this daemon answers.

        The lab hosts' emulated CPU forgets that no interrupt may come between STI and HLT (docs/lab.md): an
        idle guest then sleeps on an event that it has taken, until the next one comes.
        """
        client = Client.connect(self.run_dir / self.name / "rpc.sock", 30)
        with contextlib.closing(client), contextlib.suppress(NoAnswer, OSError):
            while not self._over.wait(3):
                with contextlib.suppress(RpcFault):  # no guest just now
                    client.call("evtchn.inject", {"port": 1}, timeout=LIMIT)

    def ctl(self, *argv: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "xenpvd.ctl.cli", "--run-dir", str(self.run_dir), *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)

    def call(self, method: str, **params: Any) -> Any:
        assert self.client is not None
        try:
            return self.client.call(method, params, timeout=LIMIT)
        except RpcFault as fault:
            for name in ("console_tail", "xen_tail"):
                fault.add_note(f"--- {name}:\n{fault.data.get(name, '-')}")
            raise

    def wait(self, what: str, timeout: float = 90, since: int = 0) -> Any:
        return self.call("guest.wait", **{"for": what, "timeout": timeout, "since": since})

    def at_the_shell(self) -> Daemon:
        self.wait(f"console:{assets.READY}")
        self.sh("dmesg -n 1")  # the kernel's words do not come between those of our commands
        return self

    def sh(self, command: str) -> str:
        """Type a command at the guest's shell; what it printed."""
        since = self.call("console.read", since=-1)["end"]
        self.call("console.write", text=f"echo be$((1))gin; {command}; echo e$((1))nd\n")
        self.wait("console:e1nd", since=since)
        text: str = self.call("console.read", since=since, max=65536)["text"]
        # the line's echo has the formulas, only what it prints has their values
        return text.partition("be1gin")[2].partition("e1nd")[0].replace("\r", "").strip("\n")

    def clock(self) -> tuple[float, float]:
        """See that the guest's clock is right; it lags by at least, and at most, so many seconds.

        What it is told is right to half a second (vmm/clock.py); where the lab is slow, the shim and Linux
        lose seconds of it while they boot (docs/lab.md).
        """
        before = time.time()
        told = float(self.sh("now"))
        lag = before - told, time.time() - told
        assert lag[1] >= -0.6 and lag[0] <= 5, lag
        return lag

    @property
    def pid(self) -> int:
        assert self.client is not None
        return int(self.client.call("daemon.info")["pid"])

    def log(self) -> str:
        path = self.run_dir / self.name / "xenpvd.log"
        return path.read_text() if path.exists() else ""

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Signal the daemon and wait until its sockets are dead."""
        os.kill(self.pid, signum)
        self.gone()

    def gone(self, timeout: float = 90) -> None:
        """Wait until the daemon has ended: its end of our connection closes."""
        assert self.client is not None
        try:
            while True:
                self.client.call("guest.wait", {"for": "defined", "timeout": timeout}, timeout=timeout)
        except NoAnswer as fault:
            assert "in time" not in str(fault), "the daemon did not end"
        finally:
            self.client.close()
            self.client = None

    def end(self) -> None:
        self._over.set()
        if self._nudger is not None:
            self._nudger.join()
        if self.client is not None:
            self.ctl("destroy", self.name, limit=60)
            self.client.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: the lab host's disk is a slow overlay."""
    path = Path(tempfile.mkdtemp(prefix="xenpvd-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def definition(folder: Path) -> dict[str, Any]:
    """The demo guest with its own copy of xvda."""
    shutil.copyfile(assets.disk(), folder / "xvda.img")
    return assets.definition(folder / "xvda.img")


@pytest.fixture
def daemon(folder: Path, definition: dict[str, Any]) -> Iterator[Daemon]:
    """Not yet started; whatever it becomes, it is ended."""
    one = Daemon(folder, definition)
    yield one
    one.end()
