"""What a host does to the daemon's process: signals, limits, full disks, clocks; tests/test_daemon.py, the
files of its parts and tests/lab have the rest of these cases, by their numbers."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fds import open_fds
from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from tests.rpc.conftest import Peer
from tests.test_daemon import Hall, halls
from tests.test_main import Process
from xenpvd import tasks
from xenpvd.__main__ import _run
from xenpvd.backends.console import logfile
from xenpvd.config import ConsoleConfig, GuestConfig
from xenpvd.errors import HostError
from xenpvd.logs import Lines
from xenpvd.views import Runstate

__all__ = ["halls"]  # a fixture

LOOPS = ["uvloop", "asyncio"]
PING = b'{"jsonrpc":"2.0","method":"daemon.ping","id":1}\n'


class Client:
    """A client of a daemon that is another process."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def receive(self) -> Any:
        """The next message; None at the end."""
        try:
            line = self._lines.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line else None

    def ping(self) -> bool:
        """It is served; what came before is passed over."""
        try:
            self.socket.sendall(PING)
        except ConnectionError:
            return False
        while (message := self.receive()) is not None:
            if message.get("id") == 1:
                return True
        return False

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


class Idle(Process):
    """The daemon without a guest; what it says goes to a file."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, "--name", "idle", *options)
        self.socket = self.run_dir / "idle/rpc.sock"
        self.ready()

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def idle(folder: Path, *options: str) -> Iterator[Idle]:
    """It must be told to end, and then ends well."""
    daemon = Idle(folder, *options)
    try:
        yield daemon
        daemon.process.terminate()
        status, said = daemon.end()
        assert status == 0 and "Traceback" not in said, said
    finally:
        daemon.process.kill()
        daemon.process.wait()


@pytest.mark.parametrize("loop", LOOPS)
def test_signals_that_are_not_meant_to_end_it(tmp_path: Path, loop: str) -> None:
    """P3: SIGHUP opens files anew, SIGUSR1 and SIGPIPE are nothing; stopped and continued it goes on."""
    with idle(tmp_path, "--loop", loop) as daemon:
        client = Client(daemon.socket)
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
            daemon.process.send_signal(signum)
            assert client.ping()
        daemon.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
        client.socket.sendall(PING)
        assert daemon.state() == "T"
        daemon.process.send_signal(signal.SIGCONT)
        assert client.ping()
        client.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR2])
def test_signals_that_end_it(tmp_path: Path, signum: signal.Signals) -> None:
    """P3: SIGINT as SIGTERM; what nobody sends but by mistake as SIGKILL, and the next one starts."""
    daemon = Idle(tmp_path)
    daemon.process.send_signal(signum)
    status, said = daemon.end()
    assert status == (0 if signum is signal.SIGINT else -signum) and "Traceback" not in said
    (tmp_path / "notify").unlink()
    with idle(tmp_path):
        pass


@pytest.mark.parametrize("loop", LOOPS)
def test_no_more_files(tmp_path: Path, loop: str) -> None:
    """P5: clients that take all of them are sent away, the others are served, and no loop turns idly."""
    with idle(tmp_path, "--loop", loop) as daemon:
        first = Client(daemon.socket)
        assert first.ping()
        used = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 11, used + 11))
        others = [Client(daemon.socket) for _ in range(20)]
        said = b""
        for other in others:  # some are told why, some are not even accepted
            with contextlib.suppress(TimeoutError, ConnectionError):
                other.socket.settimeout(0.01)
                said += other.socket.recv(4096)
        assert first.ping() and b"Too many open files" in said
        cpu, end = daemon.cpu(), time.monotonic() + 0.3
        while time.monotonic() < end:
            assert first.ping()
            time.sleep(0.05)  # while nobody asks
        assert daemon.cpu() - cpu < 0.25
        for other in others:
            other.close()
        last, end = Client(daemon.socket), time.monotonic() + 10
        while not last.ping():  # it came among those who had waited
            assert time.monotonic() < end
            last.close()
            last = Client(daemon.socket)
        last.close()
        first.close()


def test_as_many_files_as_may_be(tmp_path: Path) -> None:
    """N12: all sockets together may have more clients than the usual limit is of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        with idle(tmp_path) as daemon:
            assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """P6: stderr is a full disk; the files of consoles are in tests/backends/console/test_logfile.py."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "xenpvd", "--run-dir", tmp_path / "run", "--name", "idle"]
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen([*command, "--log-level", "debug"], stderr=full, env=environment)
    try:
        while b"READY=1" not in notify.recv(4096).splitlines():
            pass
        client = Client(tmp_path / "run/idle/rpc.sock")
        assert client.ping()
        client.close()
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        notify.close()


def test_what_others_wrote_is_a_line_in_the_log() -> None:
    """N22: no forged lines, and nothing that a terminal obeys; a traceback keeps its lines."""
    lines = Lines("%(levelname)s %(message)s")
    told = "/a\n2026-01-01 ERROR all is lost\x1b[2J\x9b\u2028"
    record = logging.LogRecord("x", logging.INFO, "x", 1, "path %s", (told,), None)
    said = lines.format(record)
    assert said == "INFO path /a\\x0a2026-01-01 ERROR all is lost\\x1b[2J\\x9b\\x2028"
    try:
        raise ValueError(told)
    except ValueError:
        record.exc_info = sys.exc_info()
    said = lines.format(record)
    assert said.splitlines()[1] == "Traceback (most recent call last):" and "\x1b" not in said


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_no_more_threads(
    house: House, definition: GuestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: the start fails with a word why, leaves nothing, and works as soon as there are some."""
    gc.collect()
    fds = len(open_fds())

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(HostError, match=r"can't start new thread\. Raise the limit on tasks"):
            await house.guest.start(definition)
    assert house.guest.state is Runstate.DEFINED
    gc.collect()
    assert len(open_fds()) == fds


async def test_no_more_threads_while_it_runs(
    house: House,
    definition: GuestConfig,
    machines: list[FakeMachine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P8: its log waits until there is one again, and it can be ended all the same."""
    log = tmp_path / "console.log"
    definition = definition.model_copy(update={"console": ConsoleConfig(log=str(log))})
    await house.guest.start(definition)
    told, _, _ = house.events.subscribe(["console.log"])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        patch.setattr(logfile, "RETRY", 0.01)
        machines[0].guest_prints(b"hello\n")
        async with asyncio.timeout(5):
            assert "can't start new thread" in (await anext(told)).data["error"]
        await house.guest.destroy()
        assert machines[0].stopped and machines[0].closed and house.guest.state is Runstate.STOPPED
    async with asyncio.timeout(5):
        assert (await anext(told)).data["error"] is None
    assert log.read_bytes() == b"hello\n"


async def test_no_more_memory_for_a_call(
    tmp_path: Path, halls: list[Hall], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """P4: who asked is told; the others do not notice."""
    halls.append(hall := Hall(tmp_path / "run", None))
    peer, other = await hall.peer(), await hall.peer()

    def greedy(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(hall.daemon.events, "history", greedy)
        assert (await peer.fault("events.history"))["data"]["reason"] == "INTERNAL"
    assert await peer.result("events.history") and await other.result("daemon.ping")
    assert "MemoryError" in caplog.text


def waiting(name: str, beneath: str) -> asyncio.Task[Any]:
    """The one task of that name, whose coroutine is a method of ``beneath``."""
    (found,) = (
        task
        for task in asyncio.all_tasks()
        if task.get_name() == name and task.get_coro().__qualname__.startswith(beneath)
    )
    return found


@pytest.mark.parametrize(
    ("name", "beneath", "ends"),
    [
        ("status", "Daemon.", "nothing"),
        ("loop lag", "watch", "nothing"),
        ("client of rpc.sock", "SocketServer.", "client"),
        ("rpc events", "Session.", "client"),
        ("console", "Console.", "console"),
        ("xenstore-1", "RingServer.", "guest"),
        ("xvda frontend", "XenbusDevice.", "guest"),
        ("console phase", "Domain.", "guest"),
        ("devices phase", "Domain.", "guest"),
    ],
)
async def test_each_tasks_fault_has_an_owner(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    caplog: pytest.LogCaptureFixture,
    name: str,
    beneath: str,
    ends: str,
) -> None:
    """P16, P4: each task is failed where it waits, and what it belongs to ends, nothing else."""
    config = definition.model_copy(update={"on_crash": "preserve"})
    halls.append(hall := Hall(tmp_path / "run", config))
    peer = await hall.peer()
    machines[0].owner.machine_log(b"(XEN) hello\n")
    await peer.result("events.subscribe", names=["none"])
    task = waiting(name, beneath)
    task._fut_waiter.set_exception(MemoryError())  # type: ignore[attr-defined]
    await asyncio.wait({task}, timeout=5)
    assert task.done() and "MemoryError" in caplog.text
    hall.peers.append(other := await Peer.connect(hall.socket))
    if ends == "guest":
        assert (await other.result("guest.wait", **{"for": "crashed"}))["reason"] == "fault"
    else:
        assert (await other.result("guest.status"))["state"] == "running"
    if ends == "client":
        assert await peer.receive() is None
    told = [event["name"] for event in await other.result("events.history", names=["console.error"])]
    assert told == ["console.error"] * (ends == "console")


SECRET = b"correct horse battery staple"


async def test_no_traceback_has_what_the_guest_has(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P17: neither that of a device nor that of a call; cores do not either (tests/vmm/test_memory.py)."""
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    console = hall.daemon.guest.consoles.main
    monkeypatch.setattr(console.history, "append", broken)
    machines[0].guest_prints(SECRET)
    await peer.result("events.subscribe", names=["console.error"], since=0)
    await peer.note("event")
    monkeypatch.setattr(console, "type", broken)
    fault = await peer.fault("console.write", text=SECRET.decode())
    assert fault["data"]["reason"] == "INTERNAL" and SECRET.decode() not in str(fault)
    assert caplog.text.count("Traceback") == 2 and SECRET.decode() not in caplog.text


def test_only_what_people_read_is_of_a_clock_that_jumps() -> None:
    """P9: limits, pauses and watchdogs are by clocks that cannot; ``time.time`` is in these files only."""
    package = Path(tasks.__file__).parent
    clocks = {"time.time", "time.time_ns", "time.localtime", "datetime.now"}
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in clocks:
                found.add(file.relative_to(package).as_posix())
    assert found == {
        "events.py",  # when it was
        "daemon.py",  # since when it runs
        "jobs.py",  # when they began and ended
        "dumpfile.py",  # when it was written
        "consoles.py",  # times in logs; what was printed so long ago
        "backends/console/history.py",  # the same
        "backends/console/viewer.py",  # since when it looks
        "backends/xenstore/server.py",  # times in its history
        "vmm/clock.py",  # what time the guest has
        "gateway/serving.py",  # is a list of revoked certificates out of date: to warn, OpenSSL decides
        "ctl/output.py",  # local time, for people
        "ctl/consoles.py",  # the same
    }


async def test_a_clock_that_jumps_ends_no_wait(
    tmp_path: Path, halls: list[Hall], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P9: an hour forward, and two back."""
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    peer.request("guest.wait", "wait", **{"for": "running", "timeout": 600})
    now = time.time()
    for hours in (1, -1):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        assert (await peer.call("daemon.ping"))["id"] == 1, "and not the end of the wait"


async def test_what_stays_is_not_looked_through_again_and_again() -> None:
    """N13: a collection of all that was imported would hold up every client for tens of milliseconds."""
    frozen = []

    class Quick:
        async def run(self, *, start: bool) -> None:
            frozen.append(gc.get_freeze_count())

    try:
        await _run(Quick, start=True)  # type: ignore[arg-type]
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000
