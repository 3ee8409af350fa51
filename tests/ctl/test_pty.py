"""A console as a pty: whoever opens it is a viewer."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon
from tests.ctl.terminal import MAIN, PYTHON, at_once
from tests.rpc.conftest import until
from xenpvd.ctl import pty


class Served:
    def __init__(self, run_dir: Path, link: Path, *options: str) -> None:
        command = [PYTHON, "-c", MAIN, sys.executable, "--run-dir", str(run_dir)]
        command += ["console", "web1", "--pty", str(link), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=10)
        return self.process.returncode, said


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "web1.tty"


@pytest.fixture
def served(run_dir: Path, daemon: Daemon, link: Path) -> Iterator[Served]:
    daemon.do(lambda: daemon.service.console.print(b"login: "))
    served = Served(run_dir, link)
    yield served
    served.process.kill()
    served.end()


def read(fd: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        seen += os.read(fd, 4096)


def test_each_opening_is_a_viewer(served: Served, daemon: Daemon, link: Path) -> None:
    assert served.said == f"web1 console is {link.readlink()}, {link}; ^C ends it\n"
    assert not daemon.service.console.viewers
    for number in (b"1", b"2"):
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
        read(fd, b"login: ")
        assert not termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON)
        os.write(fd, b"root" + number + b"\r\x03")
        daemon.wait(daemon.service.console.wait_typed(b"root" + number + b"\r\x03"))
        daemon.do(lambda: daemon.service.console.print(b"welcome\r\n"))
        read(fd, b"welcome\r\n")
        os.close(fd)
        daemon.wait(until(lambda: not daemon.service.console.viewers))
    served.process.send_signal(signal.SIGINT)
    assert served.end() == (130, "")
    assert not link.is_symlink()


def test_typed_and_closed_at_once(served: Served, daemon: Daemon, link: Path) -> None:
    link.write_bytes(b"reboot\r")
    daemon.wait(daemon.service.console.wait_typed(b"reboot\r"))


def test_the_last_keys_wait_for_a_daemon_that_reads_late() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    opening = threading.Thread(target=pty._Opening(master, lambda: (ours, b"")).serve)
    opening.start()
    typed = os.urandom(60_000)
    with os.fdopen(slave, "wb", buffering=0) as terminal:
        assert sum(terminal.write(typed[at : at + 1000]) for at in range(0, len(typed), 1000)) == len(typed)
    with theirs, theirs.makefile("rb") as taken:
        assert taken.read() == typed
    opening.join()
    os.close(master)


def test_it_ends_with_a_viewer_that_was_ended(served: Served, daemon: Daemon, link: Path) -> None:
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    read(fd, b"login: ")
    daemon.do(lambda: daemon.service.consoles.kick(daemon.service.console.viewers[0].number, "the boss"))
    status, said = served.end()
    os.close(fd)
    assert status == 1 and "ended by the boss" in said and not link.is_symlink()


def test_a_link_that_is_none(run_dir: Path, daemon: Daemon, link: Path) -> None:
    link.write_bytes(b"precious")
    served = Served(run_dir, link)
    assert "there is something else" in served.said and served.end()[0] == 1
    assert link.read_bytes() == b"precious"
    served = Served(run_dir, link / "missing")
    assert "Not a directory" in served.said and served.end()[0] == 1


def test_a_link_of_one_who_was_killed_is_taken_over(served: Served, run_dir: Path, link: Path) -> None:
    served.process.kill()
    served.end()
    assert link.is_symlink()
    again = Served(run_dir, link)
    assert "web1 console is" in again.said
    again.process.terminate()
    assert again.end()[0] == 143 and not link.is_symlink()


def test_opened_again_at_once_while_the_guest_prints(served: Served, daemon: Daemon, link: Path) -> None:
    """Somebody who left holds no keyboard, however much the guest prints."""
    for number in range(5):
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
        read(fd, b"login: ")
        word = b"word%d\r" % number
        os.write(fd, word)
        daemon.wait(daemon.service.console.wait_typed(word))
        daemon.do(lambda: daemon.service.console.print(b"login: "))
        os.close(fd)
        daemon.do(lambda: daemon.service.console.print(b"still printing"))
        daemon.wait(until(lambda: not daemon.service.console.viewers))
    assert served.process.poll() is None


def test_who_writes_and_does_not_read(served: Served, daemon: Daemon, link: Path) -> None:
    daemon.do(lambda: daemon.service.console.print(b"x" * 200_000))
    link.write_bytes(b"reboot\r")
    daemon.wait(daemon.service.console.wait_typed(b"reboot\r"))
    fd = os.open(link, os.O_WRONLY | os.O_NOCTTY)
    os.write(fd, b"halt\r")
    daemon.wait(daemon.service.console.wait_typed(b"halt\r"))
    os.close(fd)


def test_where_somebody_has_the_keyboard_an_opening_looks_on(
    served: Served, daemon: Daemon, link: Path
) -> None:
    daemon.do(lambda: daemon.service.consoles.attach("0", "rw", None, None, "somebody"))
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    read(fd, b"login: ")
    os.write(fd, b"unheard")
    daemon.do(lambda: daemon.service.console.print(b"more"))
    read(fd, b"more")
    os.close(fd)
    served.process.terminate()
    assert "looks on" in served.end()[1] and not daemon.service.console.typed


def test_another_ones_link_is_left_alone(served: Served, run_dir: Path, link: Path) -> None:
    again = Served(run_dir, link)
    assert "it is one to /dev/pts/" in again.said and again.end()[0] == 1
    other = link.with_name("other")
    other.symlink_to("/etc/hostname")
    again = Served(run_dir, other)
    assert "it is one to /etc/hostname" in again.said and again.end()[0] == 1
    assert link.is_symlink() and other.is_symlink()


def test_what_one_left_behind_is_not_the_next_ones(served: Served, daemon: Daemon, link: Path) -> None:
    """Neither what it has not read, nor its settings, by which the guest's output would be typed to it."""
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    select.select([fd], [], [])  # but it does not read
    settings = termios.tcgetattr(fd)
    settings[3] |= termios.ECHO | termios.ICANON
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    os.close(fd)
    daemon.wait(until(lambda: not daemon.service.console.viewers))
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    daemon.wait(until(lambda: bool(daemon.service.console.viewers)))
    daemon.do(lambda: daemon.service.console.print(b"end"))
    seen = b""
    while not seen.endswith(b"end"):
        seen += os.read(fd, 4096)
    assert seen == b"login: end"
    assert not termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON)
    os.write(fd, b"root\r")
    daemon.wait(daemon.service.console.wait_typed(b"root\r"))
    os.close(fd)
    assert daemon.service.console.typed == b"root\r"


def test_who_does_not_read_is_told_what_is_missing(served: Served, daemon: Daemon, link: Path) -> None:
    size = 3 << 20
    daemon.do(lambda: setattr(daemon.service.console.history, "limit", size))
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    daemon.do(lambda: daemon.service.console.print(b"x" * size))
    daemon.wait(until(lambda: [one.offset for one in daemon.service.console.viewers] == [size + 7]))
    daemon.do(lambda: daemon.service.console.print(b"end"))
    seen = b""
    while not seen.endswith(b"end"):
        seen += os.read(fd, 1 << 16)
    os.close(fd)
    missing = [int(count) for count in re.findall(rb"\r\n\[(\d+) bytes were not read in time\]\r\n", seen)]
    told = len(b"login: ") + len(missing) * 50  # which may be missing in their turn
    assert missing and size <= seen.count(b"x") + sum(missing) <= size + told


def test_it_ends_with_the_daemon_though_nobody_looks(served: Served, daemon: Daemon, link: Path) -> None:
    daemon.end()
    assert served.end() == (0, "web1 is gone\n")
    assert not link.is_symlink()


def test_two_signals_at_once_leave_no_link(served: Served, link: Path) -> None:
    """As ^C, and the end of whoever has begun it."""
    at_once(served.process, signal.SIGINT, signal.SIGTERM)
    assert served.end() == (130, "") and not link.is_symlink()


def test_a_closed_one_is_over_as_soon_as_its_keys_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the daemon leaves the connection open: who ends its sending side may look on."""
    monkeypatch.setattr(pty, "GRACE", 60)
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    ours, theirs = socket.socketpair()
    opening = threading.Thread(target=pty._Opening(master, lambda: (ours, b"")).serve)
    opening.start()
    os.write(slave, b"reboot\r")
    os.close(slave)
    with theirs, theirs.makefile("rb") as taken:
        assert taken.read() == b"reboot\r"
        opening.join(20)
        assert not opening.is_alive()
    os.close(master)
