"""The programs of docs/examples: typed, and doing what docs/client.md says of them.

orchestrator.py with a real guest is in tests/lab.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.client.conftest import Daemon, until
from tests.fakes.service import FakeService
from xenpvd.client import connect
from xenpvd.tasks import Tasks

HOUSE = Path(__file__).parents[2]
EXAMPLES = HOUSE / "docs/examples"
FAKE_DAEMON = [sys.executable, str(HOUSE / "tests/ctl/fake_daemon.py"), "-P", "-m", "xenpvd"]


def test_type_checkers_find_nothing(tmp_path: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, *EXAMPLES.glob("*.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(HOUSE)},
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_page_shows_them_as_they_are() -> None:
    page = (HOUSE / "docs/client.md").read_text()
    for program in EXAMPLES.glob("*.py"):
        assert f"```python\n{program.read_text()}```\n" in page, program


async def start(tmp_path: Path, name: str) -> Process:
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "XENPVD_RUN_DIR": str(tmp_path)}
    program = [sys.executable, str(EXAMPLES / "follow.py"), name]
    return await asyncio.create_subprocess_exec(*program, stdout=PIPE, stderr=PIPE, env=environment)


class Follower:
    """follow.py and what it has said so far."""

    def __init__(self, process: Process) -> None:
        assert process.stdout and process.stderr
        self.process, self.out, self.err = process, process.stdout, process.stderr

    async def shows(self, text: bytes) -> None:
        assert await asyncio.wait_for(self.out.readexactly(len(text)), 20) == text

    async def notes(self, text: str) -> None:
        """Its notes up to one with ``text``; ConsoleFound and events come in no order between them."""
        async with asyncio.timeout(20):
            while text not in (line := (await self.err.readline()).decode()):
                assert line, f"it ended without {text}"


@pytest.fixture
async def follower(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Follower]:
    process = await start(tmp_path, "web1")
    yield Follower(process)
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def test_follow(follower: Follower, daemon: Daemon, service: FakeService) -> None:
    service.console.print(b"login: ")
    await follower.notes("-- web1 is running")
    await follower.shows(b"login: ")
    await until(lambda: bool(service.events._subscriptions))
    service.events.publish("drive.added", vdev="xvdb")
    await follower.notes("-- drive.added {'vdev': 'xvdb'}")
    (await daemon.replace()).console.print(b"another life")
    await follower.shows(b"another life")
    await follower.notes("-- events are missing here (restart)")
    follower.process.send_signal(signal.SIGINT)
    assert await follower.process.wait() == 0


async def test_follow_says_what_is_wrong(tmp_path: Path) -> None:
    process = await start(tmp_path, "web2")
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode() == f"cannot reach {tmp_path}/web2/rpc.sock: it is missing. Start its guest.\n"


@pytest.fixture
def orchestrator(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> Callable[[], ModuleType]:
    """The program, whose daemon is tests/ctl/fake_daemon.py; ``path`` is where its socket will be."""

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("orchestrator", EXAMPLES / "orchestrator.py")
        assert spec and spec.loader
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
        monkeypatch.setattr(program, "DAEMON", FAKE_DAEMON)
        return program

    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    (tmp_path / "web1.toml").write_text("memory = 256\n")
    (tmp_path / "data.img").write_bytes(bytes(512))
    return load


@pytest.fixture
def notify(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What the fake daemon tells when it is ready goes nowhere."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{tmp_path}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
        yield


@pytest.mark.usefixtures("notify")
async def test_orchestrator(
    orchestrator: Callable[[], ModuleType], tmp_path: Path, path: Path, capfdbinary: Any
) -> None:
    stop, tasks = asyncio.Event(), Tasks(lambda name, fault: None)
    files = tmp_path / "web1.toml", tmp_path / "data.img", tmp_path
    running = tasks.spawn(orchestrator().orchestrate(*files, stop), "orchestrator")
    async with connect(path, wait=20) as guest:
        async for event in guest.events("drive.added", since=0):
            assert getattr(event, "data", None) == {"vdev": "xvdb"}
            break
        (viewer,) = await guest.console_viewers()
        await guest.console_kick(viewer=viewer["viewer"])  # a connection that is lost
        while [viewer["viewer"]] == [one["viewer"] for one in await guest.console_viewers()]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not running.done()
        stop.set()
        assert await asyncio.wait_for(running, 20) is True
    out, err = capfdbinary.readouterr()
    assert out.count(b"Linux version 6.1\r\nlogin: ") == 1
    assert b"-- xvdb is Connected, 1048576 bytes" in err and b"-- stopped after 1.5 s" in err


@pytest.mark.usefixtures("notify")
async def test_orchestrator_whose_daemon_refuses(
    orchestrator: Callable[[], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    files = tmp_path / "web1.toml", tmp_path / "data.img", tmp_path
    with pytest.raises(BaseExceptionGroup) as group:
        await asyncio.wait_for(orchestrator().orchestrate(*files, asyncio.Event()), 20)
    assert [str(fault) for fault in group.value.exceptions] == [
        "the daemon has ended, status 2. It said why above."
    ]
