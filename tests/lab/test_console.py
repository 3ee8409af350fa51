"""The console of a real guest: as a terminal sees it, shared by several, and to the last byte."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import guest as assets
from tests.lab.conftest import Daemon
from xenpvd.ctl.client import Client


class Terminal:
    """A command on a pseudo terminal, and what it has shown."""

    def __init__(self, *argv: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.shown = ""

    def until(self, text: str, limit: float = 90) -> None:
        """Read until ``text`` is shown; what comes up to it is forgotten."""
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], limit)
            assert ready, f"{text!r} did not come; shown: {self.shown[-2000:]}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                data = b""
            assert data, f"it ended before {text!r}; shown: {self.shown[-2000:]}"
            self.shown += data.decode("utf-8", "replace")
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        try:
            while True:  # what it still says has to go somewhere
                if not os.read(self.master, 65536):
                    break
        except OSError:
            pass
        os.close(self.master)
        return self.process.wait(60)


def test_run_is_a_guest_on_the_terminal_and_leaving_shuts_it_down(
    folder: Path, definition: dict[str, Any]
) -> None:
    terminal = Terminal(
        *(sys.executable, "-m", "xenpvd.ctl.cli", "--run-dir", str(folder / "run"), "run", "--name", "quick"),
        *("--kernel", definition["kernel"], "--ramdisk", definition["ramdisk"], "--memory", "256"),
        *("--cmdline", "console=hvc0", "--shim", definition["shim"]["path"]),
        *("--disk", str(folder / "xvda.img")),
    )
    terminal.until("^]")
    terminal.until(assets.READY)
    terminal.until(assets.PROMPT)
    terminal.type("echo typed > /mnt/typed; echo $((6 * 7))-there\r")
    terminal.until("42-there")
    terminal.type("\x1d")
    assert terminal.end() == 0
    assert assets.read_file(folder / "xvda.img", "/typed") == b"typed\n"  # it had time to save
    assert not list((folder / "run").glob("*/rpc.sock"))


def test_two_viewers_one_keyboard(daemon: Daemon) -> None:
    daemon.start().at_the_shell()
    path = daemon.run_dir / daemon.name / "rpc.sock"
    with Client.connect(path) as first, Client.connect(path) as second:
        reply, typing, early = first.attach("rw")
        assert reply["mode"] == "rw" and reply["offset"] == 0
        while b"Linux version" not in early:  # the recording from its first byte; it may come with the reply
            early += typing.recv(65536)
        end = daemon.call("console.read", since=-1)["end"]
        watching_reply, watching, _ = second.attach("ro", since=end)
        assert watching_reply["mode"] == "ro"
        typing.sendall(b"echo both-$((1 + 1))\n")
        seen = b""
        while b"both-2" not in seen:
            seen += watching.recv(65536)
        assert daemon.call("guest.status")["viewers"] == 2


def test_the_last_line_before_the_power_goes_is_recorded(daemon: Daemon) -> None:
    """M7."""
    daemon.start().at_the_shell()
    with Client.connect(daemon.run_dir / daemon.name / "rpc.sock") as client:
        _, viewer, text = client.attach("rw")
        viewer.sendall(b"sync; echo the very last w$((0))rd > /dev/console; busybox poweroff -f\n")
        while data := viewer.recv(65536):
            text += data
    assert b"the very last w0rd" in text
    assert b"reboot: " in text.partition(b"w0rd")[2]  # the kernel's own last line: Power down, System halted
    daemon.gone()


def test_typing_before_the_guest_is_up_waits_for_it(daemon: Daemon) -> None:
    """A shim that gets an event before it has made its guest has nobody to hand it to, and dies."""
    daemon.start("--paused")
    daemon.call("guest.resume")
    while daemon.call("guest.status")["phase"] in ("vcpu", "shim"):
        daemon.call("console.write", text="#")
        daemon.call("evtchn.inject", port=2)  # the store's
    daemon.call("console.write", text="\necho ty$((1))ped-ahead\n")
    daemon.wait("console:ty1ped-ahead")
