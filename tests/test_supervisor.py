"""What a supervisor is told, at its end of a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from xenpvd.supervisor import Supervisor, watchdog_period
from xenpvd.tasks import Tasks


class Systemd:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    async def hears(self) -> str:
        async with asyncio.timeout(10):
            return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode()

    def has_heard(self) -> list[str]:
        """All that has come, without waiting."""
        heard = []
        while True:
            try:
                heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return heard


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Systemd]:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    address = str(tmp_path / "notify") if request.param == "path" else f"\0xenpvd-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
    systemd = Systemd(address)
    yield systemd
    systemd.socket.close()


@pytest.fixture
async def supervisor(systemd: Systemd) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.close()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks()
    yield tasks
    await tasks.cancel()


async def test_ready_and_stopping(systemd: Systemd, supervisor: Supervisor) -> None:
    await supervisor.ready()
    supervisor.notify("STOPPING=1", "STATUS=bye")
    assert systemd.has_heard() == ["READY=1", "STOPPING=1\nSTATUS=bye"]


async def test_a_status_is_one_line_and_told_once(systemd: Systemd, supervisor: Supervisor) -> None:
    for text in ("running", "running", "crashed: no\nMAINPID=1", "running"):
        supervisor.status(text)
    assert systemd.has_heard() == ["STATUS=running", "STATUS=crashed: no MAINPID=1", "STATUS=running"]


async def test_a_supervisor_that_takes_nothing_holds_nobody_up_but_the_readiness(
    systemd: Systemd, supervisor: Supervisor, tasks: Tasks
) -> None:
    for n in range(5000):  # far more than a socket keeps
        supervisor.notify(f"STATUS={n}")
    ready = tasks.spawn(supervisor.ready(), "ready")
    await asyncio.sleep(0)
    assert not ready.done()
    kept = systemd.has_heard()
    assert kept[0] == "STATUS=0" and len(kept) < 5000
    assert await systemd.hears() == "READY=1"
    await ready


async def test_a_supervisor_that_is_gone_or_never_was(
    systemd: Systemd, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    systemd.socket.close()
    supervisor.status("x")
    await supervisor.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    nobody = Supervisor()
    nobody.status("x")
    await nobody.ready()
    nobody.close()
    monkeypatch.delenv("NOTIFY_SOCKET")
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    alone = Supervisor()
    alone.status("x")
    await alone.ready()
    await alone.watchdog(lambda limit: None)  # returns
    alone.close()


async def test_the_watchdog_is_fed_while_all_is_well(
    systemd: Systemd,
    supervisor: Supervisor,
    tasks: Tasks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P14."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    asked = asyncio.Event()
    limits: list[float] = []
    trouble: list[str] = []

    def fault(limit: float) -> str | None:
        limits.append(limit)
        asked.set()
        return trouble[0] if trouble else None

    async def is_asked(times: int) -> None:
        for _ in range(times):
            asked.clear()
            async with asyncio.timeout(10):
                await asked.wait()

    tasks.spawn(supervisor.watchdog(fault), "watchdog")
    for _ in range(3):
        assert await systemd.hears() == "WATCHDOG=1"
    trouble.append("vCPU 0 is stuck")
    await is_asked(1)
    systemd.has_heard()
    await is_asked(2)
    assert systemd.has_heard() == []
    assert "vCPU 0 is stuck: the watchdog is not told that all is well" in caplog.text
    trouble.clear()
    assert await systemd.hears() == "WATCHDOG=1"
    assert set(limits) == {0.01}


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [
        (None, None, 0),
        ("30000000", None, 15),
        ("30000000", "", 15),
        ("30000000", "self", 15),
        ("30000000", "1", 0),  # meant for who started us
        ("0", None, 0),
        ("soon", None, 0),
        ("-5", None, 0),
        ("30000000", "me", 0),
    ],
)
def test_how_often(monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, period: float) -> None:
    for name, text in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if text is not None:
            monkeypatch.setenv(name, text.replace("self", str(os.getpid())))
    assert watchdog_period() == period
