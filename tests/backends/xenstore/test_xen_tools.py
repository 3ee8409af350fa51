"""Debian's own xenstore tools, unchanged, on the store alone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.packages import xen_environment, xen_tool
from lab.progress import LabError
from tests.backends.xenstore.test___main__ import run


class Tools:
    """Xen's tools at a xenstored's socket. They are skipped where make setup has not brought them."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        try:
            argv = [str(xen_tool(f"xenstore-{name}")), *words]
        except LabError as fault:
            pytest.skip(str(fault))
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, env=xen_environment(self.socket), stdout=pipe, stderr=pipe, text=True)

    def __call__(self, name: str, *words: str, status: int = 0) -> str:
        """What it prints; to stderr, if it is to fail with ``status``."""
        with self.start(name, *words) as process:
            said, complaint = process.communicate(timeout=30)
        assert process.returncode == status, (name, words, said, complaint)
        return complaint if status else said


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[Tools, Tools]]:
    """Domain 0's tools and domain 3's."""
    own, guest = tmp_path / "s", tmp_path / "g"
    with run("--socket", str(own), "--domid", "3", str(guest)) as process:
        try:
            assert process.stderr is not None and process.stderr.readline().startswith("xenstore serves ")
            yield Tools(own), Tools(guest)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


@pytest.fixture
def dom0(sockets: tuple[Tools, Tools]) -> Tools:
    return sockets[0]


def test_write_read_list_exists_rm(dom0: Tools) -> None:
    assert dom0("write", "/a/b", "first", "/a/c", "second one") == ""  # in one transaction
    assert dom0("read", "/a/b", "/a/c") == "first\nsecond one\n"
    assert dom0("read", "-p", "/a/b") == "/a/b: first\n"
    assert dom0("list", "/a") == "b\nc\n"
    assert dom0("exists", "/a/b") == ""
    dom0("exists", "/a/d", status=1)
    assert dom0("rm", "/a/b", "/a/c") == "" and dom0("list", "/a") == ""
    assert "couldn't read path /a/b" in dom0("read", "/a/b", status=1)
    assert "could not remove path /x/y" in dom0("rm", "/x/y", status=1)  # its parent is not there either


def test_rm_tidies_up(dom0: Tools) -> None:
    dom0("write", "/a/b/c", "", "/a/d", "")
    dom0("rm", "-t", "/a/b/c")
    assert dom0("list", "/a") == "d\n"


def test_values_that_are_no_text(dom0: Tools) -> None:
    dom0("write", "/a", r"\x01\\\xff ü")
    assert dom0("read", "/a") == "\\001\\\\\\xff \\xc3\\xbc\n"
    dom0("write", "-R", "/a", r"\x01")  # raw: as it is
    assert dom0("read", "-R", "/a") == "\\x01"


def test_ls_and_chmod(dom0: Tools) -> None:
    dom0("write", "/a/b/c", "1", "/a/d", "2")
    dom0("chmod", "/a/d", "n3", "r0", "b2")
    assert dom0("ls", "/a") == 'b = ""\n c = "1"\nd = "2"\n'
    told = [line.split() for line in dom0("ls", "-fp", "/a").splitlines()]
    assert [(words[0], words[2], words[-1]) for words in told] == [
        ("/a/b", '""', "(n0)"),
        ("/a/b/c", '"1"', "(n0)"),
        ("/a/d", '"2"', "(n3,r0,b2)"),
    ]
    dom0("chmod", "-r", "/a", "r0")
    assert dom0("ls", "-fp", "/a").count("(r0)") == 3
    assert "setting permissions on '/z'" in dom0("chmod", "/z", "n0", status=1)


def test_ls_of_more_than_a_reply_holds(dom0: Tools) -> None:
    """The names do not fit a payload: libxenstore asks for them in parts."""
    names = [f"{number:03}-{'x' * 60}" for number in range(200)]
    dom0("write", *(word for name in names for word in (f"/many/{name}", "")))
    assert dom0("list", "/many").split() == names


def test_watch(dom0: Tools) -> None:
    with dom0.start("watch", "-n", "3", "/a") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "/a\n"  # that it was registered
        dom0("write", "/a/b", "1")
        assert process.stdout.readline() == "/a/b\n"
        dom0("write", "/other", "1")
        dom0("rm", "/a")
        assert process.stdout.read() == "/a\n" and process.wait(30) == 0


def test_control(dom0: Tools) -> None:
    assert dom0("control", "check") == "OK\n"
    assert "requests : off" in dom0("control", "log")
    assert dom0("control", "log", "on") == "OK\n" and "requests : on" in dom0("control", "log")
    assert dom0("control", "print", "a word") == "OK\n"
    assert dom0("control", "quota", "set", "nodes", "7") == "OK\n"
    limits = dict(line.split(":") for line in dom0("control", "quota").splitlines()[1:] if line)
    assert {name.strip(): value.split()[0] for name, value in limits.items()}["nodes"] == "7"
    assert dom0("control", "quota", "3").startswith("Domain 3:\n")
    assert "Valid commands are:\ncheck" in dom0("control", "nonsense", status=3)


def test_a_guests_tools(sockets: tuple[Tools, Tools]) -> None:
    dom0, guest = sockets
    guest("write", "data/x", "mine")
    assert dom0("read", "/local/domain/3/data/x") == guest("read", "data/x") == "mine\n"
    dom0("write", "/secret", "1")
    assert "couldn't read path /secret" in guest("read", "/secret", status=1)
    guest("control", "check", status=3)
    dom0("control", "quota", "set", "nodes", "3")  # its home, data and data/x
    assert "could not write path y" in guest("write", "y", "", status=1)
