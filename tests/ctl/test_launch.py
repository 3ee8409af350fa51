"""Starting a daemon: ready, refusing, silent, stubborn."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from xenpvd.ctl.launch import Launched, NotReady
from xenpvd.ctl.rundir import RunDir

pytestmark = pytest.mark.usefixtures("fake_daemon")


@pytest.fixture
def launch(run_dir: Path, config: Path) -> Iterator[Callable[[], Launched]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Launched(RunDir(run_dir), "web1", config)))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "web1.toml"
    path.write_text('kernel = "/k"\n')
    return path


def test_ready(run_dir: Path, launch: Callable[[], Launched]) -> None:
    run_dir.rmdir()
    launched = launch()
    launched.wait_ready(20)
    place = RunDir(run_dir)
    with place.connect("web1") as client:
        assert client.hello["guest"] == "web1"
    assert os.getsid(launched.pid) == launched.pid, "it does not go down with the terminal"
    assert place.log("web1").parent.stat().st_mode & 0o777 == 0o750
    assert launched.wait(0) is None
    assert launched.end(10) == 0
    assert "verbs done:" in launched.tail()


def test_refusing(launch: Callable[[], Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    for _ in range(2):
        launched = launch()
        with pytest.raises(NotReady, match="memory: too small") as fault:
            launched.wait_ready(20)
        assert fault.value.status == 2
        assert launched.tail().count("config:") == 1, "of this start only"


def test_silent(launch: Callable[[], Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "silent")
    launched = launch()
    with pytest.raises(NotReady, match=r"not ready after 0\.05 s") as fault:
        launched.wait_ready(0.05)
    assert fault.value.status is None
    assert launched.wait(10) == -signal.SIGTERM


def test_stubborn(launch: Callable[[], Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "stubborn")
    launched = launch()
    launched.wait_ready(20)
    assert launched.end(0.05) == -signal.SIGKILL


def test_readiness_is_believed_of_the_daemon_only(
    launch: Callable[[], Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "silent")
    launched = launch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(b"READY=1", launched._ready.getsockname())
    with pytest.raises(NotReady):
        launched.wait_ready(0.05)
    launched.wait(10)
