"""The daemon as a whole, in this process, on machines without KVM; and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_shim
from tests.fakes.machine import FakeMachine
from tests.rpc.conftest import Peer
from xenpvd.config import GuestConfig
from xenpvd.daemon import Daemon, NameLock
from xenpvd.errors import Busy, HostError
from xenpvd.views import Runstate


class Hall:
    """A daemon that runs in this loop."""

    def __init__(self, run_dir: Path, config: GuestConfig | None, stop_timeout: float = 5) -> None:
        self.daemon = Daemon("web1", run_dir, config, stop_timeout)
        self.socket = run_dir / "web1" / "rpc.sock"
        self.peers: list[Peer] = []
        self.ended = asyncio.ensure_future(self.daemon.run(start=config is not None))  # noqa: TID251

    async def peer(self) -> Peer:
        ready, _, _ = self.daemon.events.subscribe(("daemon.ready",), since=0)
        async with asyncio.timeout(5):
            await anext(ready)
        ready.close()
        self.peers.append(await Peer.connect(self.socket))
        return self.peers[-1]


@pytest.fixture
async def halls() -> AsyncIterator[list[Hall]]:
    made: list[Hall] = []
    yield made
    for hall in made:
        hall.daemon.quit()
        hall.daemon._at_once.set()
        with contextlib.suppress(Exception):
            await hall.ended
        for peer in hall.peers:
            await peer.close()


async def test_a_guest_from_start_to_shutdown_over_rpc(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()
    assert (await peer.result("guest.status"))["state"] == "running"
    assert (await peer.result("daemon.info"))["name"] == "web1"
    machines[0].guest_prints(b"hello from hvc0\n")
    await peer.result("guest.wait", **{"for": "console:hvc0"})
    assert (await peer.result("console.read"))["text"] == "hello from hvc0\n"
    machines[0].owner.machine_log(b"(XEN) hello\n")
    await peer.result("guest.wait", **{"for": "shim"})
    assert (await peer.result("console.read", stream="xen"))["text"] == "(XEN) hello\n"
    await peer.result("console.write", text="ls\n")
    assert machines[0].guest_typed() == b"ls\n"
    assert "51712" in await peer.result("xenstore.list", path="/local/domain/1/device/vbd")
    peer.request("guest.shutdown", id_="bye")
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    reply = await peer.receive()
    assert reply["id"] == "bye" and reply["result"]["state"] == "stopped"
    await hall.ended  # on_poweroff = destroy: the daemon ends with its guest
    assert not hall.socket.exists()


async def test_an_idle_daemon_takes_one_guest_after_another(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    assert (await peer.result("guest.status"))["state"] == "defined"
    assert (await peer.call("guest.start"))["error"]["data"]["reason"] == "VALIDATION"
    config = definition.model_dump(mode="json")
    for _ in range(2):
        assert (await peer.result("guest.start", config=config))["state"] == "running"
        assert (await peer.result("guest.destroy"))["state"] == "stopped"
    assert len(machines) == 2 and all(machine.closed for machine in machines)


async def test_sigterm_asks_the_guest_first(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition))
    await hall.peer()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    await hall.ended
    assert machines[0].closed


@pytest.mark.parametrize("second", ["signal", "time"])
async def test_sigterm_does_not_wait_for_ever(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall], second: str
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition, 0.05 if second == "time" else 60))
    peer = await hall.peer()
    await peer.result("events.subscribe", names=["daemon.stopping"])
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await peer.receive())["params"]["name"] == "daemon.stopping"
    if second == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await hall.ended
    assert machines[0].closed and hall.daemon.guest.state is Runstate.STOPPED


async def test_a_start_that_fails_ends_the_daemon_with_the_reason(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    Path(definition.kernel).unlink()
    daemon = Daemon("web1", tmp_path / "run", definition, 1)
    with pytest.raises(Exception, match="cannot read the kernel"):
        await daemon.run(start=True)
    assert not (tmp_path / "run/web1/rpc.sock").exists()


async def test_a_callback_that_fails_ends_the_guest_only(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    caplog: pytest.LogCaptureFixture,
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()
    asyncio.get_running_loop().call_soon(lambda: 1 // 0)
    status = await peer.result("guest.wait", **{"for": "crashed"})
    assert status["reason"] == "fault" and "ZeroDivisionError" in caplog.text
    assert (await peer.result("daemon.ping"))["epoch"]


def test_one_daemon_per_name(tmp_path: Path) -> None:
    lock = NameLock(tmp_path / "web1", "web1")
    with pytest.raises(Busy, match=rf"a daemon of that name runs already \(pid {os.getpid()}\)"):
        NameLock(tmp_path / "web1", "web1")
    lock.release()
    NameLock(tmp_path / "web1", "web1").release()
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="Choose another with --run-dir"):
        NameLock(tmp_path / "file" / "web1", "web1")


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
        assert self.notify.recv(64) == b"READY=1"

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=30)
        self.notify.close()
        return self.process.returncode, said


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_command_idle_told_to_end(tmp_path: Path, loop: str) -> None:
    process = Process(tmp_path, "--name", "idle", "--loop", loop)
    process.ready()
    result = _run(tmp_path, "--name", "idle")
    assert result.returncode == 3 and "runs already" in result.stderr and "Traceback" not in result.stderr
    process.process.send_signal(signal.SIGTERM)
    status, said = process.end()
    assert status == 0 and "Traceback" not in said


def test_the_command_killed_and_started_again(tmp_path: Path) -> None:
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
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"name":"idle","state":"defined","phase":null}')
    process.process.terminate()
    status, said = process.end()
    assert status == 0 and "Traceback" not in said
    assert not path.exists()


def test_without_http_its_library_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys, xenpvd.__main__ as command\n"
        "daemon = command.Daemon('idle', pathlib.Path(sys.argv[1]), None, 1)\n"
        "daemon.quit()\n"
        "asyncio.run(daemon.run(start=False))\n"
        "assert 'xenpvd.rpc.server' in sys.modules\n"
        "sys.exit('aiohttp' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=False, timeout=30)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (None, 1, "cannot read"),
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
