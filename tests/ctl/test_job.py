"""job, and following one: to its end, to its failure, and by ^C."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from xenpvd.ctl import job as module
from xenpvd.ctl.client import Client, RpcFault
from xenpvd.ctl.output import Failure
from xenpvd.ctl.rundir import RunDir
from xenpvd.errors import HostError
from xenpvd.jobs import Work

MIB = 1 << 20


class Steps:
    def __init__(self) -> None:
        self.go, self.fail = threading.Event(), False

    def __call__(self) -> Work:
        yield 2 * MIB
        self.go.wait(10)
        yield 3 * MIB
        if self.fail:
            raise HostError("cannot write /a: No space left on device. Make room.", 28, "/a")
        return {"file": "/a"}


@pytest.fixture
def steps(daemon: Daemon) -> Steps:
    steps = Steps()
    daemon.do(lambda: daemon.service.jobs.start("guest.dump", steps(), 4 * MIB, "bytes"))
    return steps


def test_list_and_wait(xenpvctl: Xenpvctl, daemon: Daemon, steps: Steps) -> None:
    daemon.wait(_far(daemon))
    listed = xenpvctl("job", "list", "web1").stdout.splitlines()
    assert listed[0].split() == ["JOB", "KIND", "STATE", "PROGRESS", "BEGUN"]
    assert listed[1].startswith("  1  guest.dump  running  2.0 MiB of 4.0 MiB  20")
    steps.go.set()
    assert xenpvctl("job", "wait", "web1", "1").stdout == "job 1 (guest.dump) is done\n"
    assert "too late: job 1 (guest.dump) is done." in xenpvctl("job", "cancel", "web1", "1", status=1).stderr
    assert "there is no job 7" in xenpvctl("job", "wait", "web1", "7", status=1).stderr
    assert xenpvctl.json("job", "list", "web1")[0]["result"] == {"file": "/a"}


async def _far(daemon: Daemon) -> None:
    """Until its first step is done."""
    events, _, _ = daemon.service.events.subscribe(("job.progress",), since=0)
    await anext(events)
    events.close()


def test_wait_for_one_that_fails(xenpvctl: Xenpvctl, steps: Steps) -> None:
    steps.fail = True
    steps.go.set()
    assert "No space left on device. Make room." in xenpvctl("job", "wait", "web1", "1", status=1).stderr


def test_cancel(xenpvctl: Xenpvctl, daemon: Daemon, steps: Steps) -> None:
    assert xenpvctl("job", "cancel", "web1", "1", "--timeout", "0", status=4).stdout == ""
    steps.go.set()
    assert xenpvctl("job", "cancel", "web1", "1").stdout == "job 1 (guest.dump) is cancelled\n"
    with RunDir(xenpvctl.run_dir).connect("web1") as client, pytest.raises(Failure, match="is cancelled"):
        module.follow(client, 1)


def test_progress_on_a_terminal(
    xenpvctl: Xenpvctl, daemon: Daemon, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    daemon.wait(_far(daemon))
    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with RunDir(xenpvctl.run_dir).connect("web1") as client:
        real = client.call

        def call(method: str, params: Any = None, timeout: float | None = None) -> Any:
            result = real(method, params, timeout)
            if method == "job.get":
                steps.go.set()
            return result

        monkeypatch.setattr(client, "call", call)
        assert module.follow(client, 1)["result"] == {"file": "/a"}
    said = capsys.readouterr().err
    assert "\r2.0 MiB of 4.0 MiB\x1b[K" in said and said.endswith("\r\x1b[K")


@pytest.mark.parametrize("late", [False, True])
def test_follow_until_interrupted(
    xenpvctl: Xenpvctl, daemon: Daemon, steps: Steps, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    with RunDir(xenpvctl.run_dir).connect("web1") as client:
        real = client.call

        def call(method: str, params: Any = None, timeout: float | None = None) -> Any:
            if method == "job.wait":
                if late:
                    steps.go.set()
                    real(method, {"job": 1})
                raise KeyboardInterrupt
            daemon.do(lambda: setattr(daemon.service.jobs._jobs[1], "unwanted", True))
            steps.go.set()
            return real(method, params, timeout)

        monkeypatch.setattr(client, "call", call)
        with pytest.raises(Failure) as ended:
            module.follow(client, 1)
    assert ended.value.exit_code == 130
    assert ("is done, too late to cancel it" if late else "is cancelled.") in ended.value.message


def test_follow_one_that_fails(xenpvctl: Xenpvctl, steps: Steps) -> None:
    steps.fail = True
    steps.go.set()
    with RunDir(xenpvctl.run_dir).connect("web1") as client, pytest.raises(RpcFault) as failed:
        module.follow(client, 1)
    assert failed.value.data["errno"] == 28


def test_a_client_that_is_no_more(xenpvctl: Xenpvctl, steps: Steps) -> None:
    """Nothing is cancelled by leaving."""
    with RunDir(xenpvctl.run_dir).connect("web1") as client:
        assert isinstance(client, Client)
    steps.go.set()
    assert xenpvctl.json("job", "wait", "web1", "1")["state"] == "done"
