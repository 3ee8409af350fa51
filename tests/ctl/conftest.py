"""A guest's socket served by the fake service in a thread, and xenpvctl as a user runs it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from tests.fakes.service import FakeService
from xenpvd.ctl.cli import cli
from xenpvd.rpc.server import RpcServer

_T = TypeVar("_T")


class Daemon:
    """RUN_DIR/NAME/rpc.sock. ``do`` runs a function in the daemon's loop: the service is not for threads."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.service = FakeService(name)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="daemon")
        self._thread.start()
        (run_dir / name).mkdir()
        self._server = RpcServer(self.service, run_dir / name / "rpc.sock")
        self.wait(self._server.start())

    def wait(self, coro: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result(10)

    def do(self, act: Callable[[], _T]) -> _T:
        async def run() -> _T:
            return act()

        result: _T = self.wait(run())
        return result

    def end(self) -> None:
        """As the daemon does when its guest powers off; the thread goes on until :meth:`stop`."""

        async def end() -> None:
            self.service.console.print(b"reboot: Power down")
            self.service.console.close()
            await self._server.stop()

        self.wait(end())

    def stop(self) -> None:
        self.wait(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Xenpvctl:
    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def __call__(self, *args: str, status: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, ["--run-dir", str(self.run_dir), *args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, (result.stdout, result.stderr)
        return result

    def json(self, *args: str, status: int = 0) -> Any:
        return json.loads(self(*args, "--json", status=status).stdout)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def xenpvctl(run_dir: Path) -> Xenpvctl:
    return Xenpvctl(run_dir)


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Daemon]:
    daemon = Daemon(run_dir, "web1")
    yield daemon
    daemon.stop()


@pytest.fixture
def service(daemon: Daemon) -> FakeService:
    return daemon.service


@pytest.fixture
def dead(run_dir: Path) -> str:
    """A guest whose daemon was killed: its socket refuses."""
    (run_dir / "gone").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / "gone" / "rpc.sock"))
    return "gone"


@pytest.fixture
def fake_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``xenpvctl start`` and ``run`` start is tests/ctl/fake_daemon.py."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "fake_daemon.py"} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
