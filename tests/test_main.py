"""``xenpvd``, the command: the daemon as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_shim
from xenpvd.ctl.client import Client


class Process:
    """``python -m xenpvd`` with a supervisor's notify socket."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(tmp_path / "notify"))
        self.notify.settimeout(30)
        self.run_dir = tmp_path / "run"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xenpvd", "--run-dir", str(self.run_dir), *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )

    def ready(self) -> None:
        while b"READY=1" not in self.notify.recv(4096).splitlines():
            pass

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=30)
        self.notify.close()
        return self.process.returncode, said


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_command_idle_told_to_end(tmp_path: Path, loop: str) -> None:
    """P2."""
    process = Process(tmp_path, "--name", "idle", "--loop", loop)
    process.ready()
    result = _run(tmp_path, "--name", "idle")
    assert result.returncode == 3 and "runs already" in result.stderr and "Traceback" not in result.stderr
    process.process.send_signal(signal.SIGTERM)
    status, said = process.end()
    assert status == 0 and "Traceback" not in said


def test_the_command_killed_and_started_again(tmp_path: Path) -> None:
    """P1."""
    process = Process(tmp_path, "--name", "idle")
    process.ready()
    process.process.kill()
    process.end()
    assert (tmp_path / "run/idle/rpc.sock").exists()  # stale
    (tmp_path / "notify").unlink()
    process = Process(tmp_path, "--name", "idle")
    process.ready()
    process.process.terminate()
    assert process.end()[0] == 0


def test_the_command_with_http(tmp_path: Path) -> None:
    process = Process(tmp_path, "--name", "idle", "--http")
    process.ready()
    path = tmp_path / "run/idle/http.sock"

    def get(what: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(f"GET {what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return client.makefile("rb").read()

    answer = get("/readyz")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"name":"idle","state":"defined","phase":null,"ready":false}')
    answer = get("/metrics")
    assert (
        answer.startswith(b"HTTP/1.1 200 ")
        and b'xenpvd_guest_state{guest="idle",state="defined"} 1' in answer
    )
    process.process.terminate()
    status, said = process.end()
    assert status == 0 and "Traceback" not in said
    assert not path.exists()


def test_the_commands_own_log(tmp_path: Path) -> None:
    process = Process(tmp_path, "--name", "idle", "--log-format", "journal")
    process.ready()
    with Client.connect(tmp_path / "run/idle/rpc.sock") as client:
        (ready,) = client.call("log.tail", {"logger": "xenpvd.daemon"})
        assert ready["level"] == "info" and ready["message"].startswith("idle is ready at ")
        assert client.call("log.set_level", {"level": "warning"})["level"] == "warning"
    process.process.terminate()
    status, said = process.end()
    lines = said.splitlines()
    assert status == 0 and lines[0].startswith("<6>xenpvd.daemon: idle is ready at ")
    assert "SIGTERM" not in said, "it is less than a warning"


def test_what_serves_http_and_qmp_is_loaded_only_for_that(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys, xenpvd.__main__ as command\n"
        "daemon = command.Daemon('idle', pathlib.Path(sys.argv[1]), None, 1)\n"
        "daemon.quit('shutdown')\n"
        "asyncio.run(daemon.run(start=False))\n"
        "assert 'xenpvd.rpc.server' in sys.modules\n"
        "sys.exit('aiohttp' in sys.modules or 'xenpvd.rpc.qmp' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=False, timeout=30)
    assert done.returncode == 0


def test_the_command_with_qmp(tmp_path: Path) -> None:
    process = Process(tmp_path, "--name", "idle", "--qmp")
    process.ready()
    path = tmp_path / "run/idle/qmp.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        lines = client.makefile("rwb", buffering=0)
        assert "QMP" in json.loads(lines.readline())
        for command, expected in (
            ("qmp_capabilities", {}),
            ("query-status", {"status": "prelaunch", "running": False}),
            ("query-uuid", {"UUID": "00000000-0000-0000-0000-000000000000"}),
            ("quit", {}),
        ):
            lines.write(json.dumps({"execute": command}).encode())
            assert json.loads(lines.readline()) == {"return": expected}
        assert lines.read() == b""
    status, said = process.end()
    assert status == 0 and "Traceback" not in said
    assert not path.exists()


def test_the_command_knows_its_accelerators(tmp_path: Path) -> None:
    result = _run(tmp_path, "--accel", "tcg")
    assert result.returncode == 2 and "'auto', 'kvm-xen', 'kvm'" in result.stderr


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (None, 2, "cannot read"),
        ("memory = ", 2, "no valid TOML"),
        ('kernel = "/k"\nmemroy = 3', 2, "memroy: there is no such key"),
        ('kernel = "/nowhere/vmlinuz"\nshim.path = "/k"', 1, "/nowhere/vmlinuz: No such file"),
        ('name = "A B"\nkernel = "/k"', 2, "name: "),
        ('kernel = "/k"\nmemory = 1', 2, "memory: "),
    ],
)
def test_the_command_refuses_with_a_message(tmp_path: Path, text: str | None, status: int, says: str) -> None:
    if text is not None:
        shim = tmp_path / "shim"
        shim.write_bytes(tiny_shim())
        (tmp_path / "g.toml").write_text(text.replace('/k"', f'{shim}"'))
    result = _run(tmp_path, "--config", str(tmp_path / "g.toml"))
    assert result.returncode == status, result.stderr
    assert says in result.stderr and "Traceback" not in result.stderr


def _run(tmp_path: Path, *options: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "xenpvd", "--run-dir", str(tmp_path / "run"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
