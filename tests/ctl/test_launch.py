"""Starting a daemon: ready, refusing, silent, stubborn."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from xenpvd.ctl.launch import Launched, NotReady
from xenpvd.ctl.rundir import RunDir
from xenpvd.paths import open_regular

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


def test_one_of_two_that_are_refused_at_once(
    run_dir: Path, launch: Callable[[], Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tells its cause, though the other one tidies up; the last one leaves nothing."""
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    place, two = RunDir(run_dir), (launch(), launch())
    for launched in two:
        assert launched.wait(20) == 2
    assert two[0].spare_log() == [], "the other one has not told yet"
    place.log("web1").unlink()
    assert "memory: too small" in two[1].tail()
    other = launch()
    assert other.wait(20) == 2
    assert two[1].spare_log() == [], "it is not that one's"
    place.tidy("web1", other.spare_log())
    assert not place.log("web1").parent.exists()


@pytest.mark.parametrize("call", ["mkdir", "open", "flock"])
def test_a_log_that_is_tidied_away_meanwhile(
    run_dir: Path, launch: Callable[[], Launched], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log, flock, isdir = RunDir(run_dir).log("web1"), fcntl.flock, os.path.isdir
    gone: list[str] = []

    def tidied(at: str) -> None:
        if at == call and not gone:
            gone.append(at)
            log.unlink(missing_ok=True)
            log.parent.rmdir()

    def opened(path: Path, flags: int, mode: int) -> int:
        tidied("open")
        return open_regular(path, flags, mode)

    def locked(fd: int, how: int) -> None:
        tidied("flock")
        flock(fd, how)

    def looked(path: Path) -> bool:  # as mkdir does at what is there
        if path == log.parent:
            tidied("mkdir")
        return isdir(path)

    if call == "mkdir":
        log.parent.mkdir()
    monkeypatch.setattr(Path, "is_dir", looked)
    monkeypatch.setattr("xenpvd.ctl.launch.open_regular", opened)
    monkeypatch.setattr("xenpvd.ctl.launch.fcntl.flock", locked)
    monkeypatch.setenv("FAKE_DAEMON", "refuse")
    assert launch().wait(20) == 2
    assert gone == [call] and "too small" in log.read_text()


def test_a_log_that_is_somebody_elses_link(
    run_dir: Path, tmp_path: Path, launch: Callable[[], Launched]
) -> None:
    log, victim = RunDir(run_dir).log("web1"), tmp_path / "victim"
    victim.touch()
    log.parent.mkdir()
    log.symlink_to(victim)
    with pytest.raises(OSError, match=f"it is no regular file: '{log}'"):
        launch()
    assert not victim.read_text()


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
