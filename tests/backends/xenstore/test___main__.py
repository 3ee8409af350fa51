"""The store alone, as a process."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from xenpvd.abi import io_xs_wire as abi


def ask(path: Path, type_: int, payload: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(struct.pack("<4I", type_, 1, 0, len(payload)) + payload)
        length = struct.unpack("<4I", sock.recv(16, socket.MSG_WAITALL))[3]
        return sock.recv(length, socket.MSG_WAITALL)


def run(*argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xenpvd.backends.xenstore", *argv]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_domain_0_and_a_guest(tmp_path: Path) -> None:
    path, guest = tmp_path / "s", tmp_path / "g"
    with run("--socket", str(path), "--domid", "3", str(guest), "-v") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert f"xenstore serves {path}, {guest}\n" in lines
        assert path.stat().st_mode & 0o777 == guest.stat().st_mode & 0o777 == 0o600
        assert ask(guest, abi.XS_WRITE, b"data/x\0from three") == b"OK\0"
        assert ask(path, abi.XS_READ, b"/local/domain/3/data/x\0") == b"from three"
        process.send_signal(signal.SIGTERM)
        rest = "".join(lines)
        assert process.wait(30) == 0 and not path.exists() and not guest.exists()
    assert f"d3 pid {os.getpid()} tx 0: WRITE data/x from three -> OK" in rest


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    with run("--socket", str(tmp_path / "no" / "s")) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and said.startswith("xenstore: cannot listen at ")
    assert said.count("\n") == 1


def test_two_domains_at_one_place_and_one_at_two(tmp_path: Path) -> None:
    one, two = str(tmp_path / "a"), str(tmp_path / "b")
    for options in (
        ("--socket", one, "--domid", "3", one),
        ("--socket", one, "--domid", "3", two, "--domid", "3", str(tmp_path / "c")),
        ("--socket", ""),
    ):
        with run(*options) as process:
            _, said = process.communicate(timeout=30)
        assert process.returncode == 2 and "Error: " in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
