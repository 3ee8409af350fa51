"""Descriptors at the daemon's start: systemd's protocol and --fd, up to a daemon that has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_shim
from xenpvd.ctl.client import Client
from xenpvd.errors import BadConfig
from xenpvd.inherited import from_options, from_systemd


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[int]:
    """A descriptor as it comes through exec()."""
    (tmp_path / "a.img").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "a.img", os.O_RDWR)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def test_options(passed: int) -> None:
    assert from_options([]) == []
    assert from_options([f"root={passed}"]) == [("root", passed)]
    assert not os.get_inheritable(passed), "what we start does not get it"


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("root", "cannot use --fd root: it must be NAME=N, with N from 3 on, as root=3. The shell"),
        ("root=", "it must be NAME=N"),
        ("root=x", "it must be NAME=N"),
        ("root=-1", "it must be NAME=N"),
        ("root=0", "it must be NAME=N"),
        ("root=99999999999", "it must be NAME=N"),
        ("=3", "cannot call a descriptor '': it takes letters"),
        ("a b=3", "cannot call a descriptor 'a b'"),
        ("root=2147483647", "cannot use descriptor root: 2147483647 was not passed on."),
    ],
)
def test_options_that_are_none(option: str, why: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(why)):
        from_options([option])


def test_a_descriptor_of_our_own_was_not_passed_on(tmp_path: Path) -> None:
    with (tmp_path / "own").open("w") as file, pytest.raises(BadConfig, match="was not passed on"):
        from_options([f"root={file.fileno()}"])


def environment(count: object, names: str | None = None, pid: object = None) -> dict[str, str]:
    found = {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(count)}
    return found if names is None else {**found, "LISTEN_FDNAMES": names}


def test_nothing_of_systemd() -> None:
    assert from_systemd({}) == []
    assert from_systemd(environment(0)) == []
    assert from_systemd(environment(2, "a:b", pid=1)) == [], "it was meant for another process"


@pytest.mark.parametrize("count", ["x", "-1", "99999", ""])
def test_a_count_that_is_none(count: str) -> None:
    with pytest.raises(BadConfig, match="it is no number of descriptors"):
        from_systemd(environment(count))


def test_names_that_no_target_can_have() -> None:
    for names in ("web1 root", "xenpvd@web1.socket", ":"):
        with pytest.raises(BadConfig, match="cannot call a descriptor"):
            from_systemd(environment(1, names))


# ---- the command

#: As systemd does it: descriptors from 3 on, and who is meant
LAUNCH = """
import os, sys
count, names, files, command = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4:]
for number, file in enumerate(filter(None, files), 3):
    os.dup2(os.open(file, os.O_RDWR), number)
    os.set_inheritable(number, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-m", "xenpvd", *command])
"""


class Launched:
    def __init__(self, tmp_path: Path, *options: str, files: str = "", names: str = "") -> None:
        count = str(len(names.split(":")) if names else 0)
        argv = [sys.executable, "-c", LAUNCH, count, names, files]
        argv += ["--run-dir", str(tmp_path / "run"), *options]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def until(self, text: str) -> None:
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if text in line:
                return
        pytest.fail(f"it ended without {text!r}: {said}")

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


def test_a_daemon_has_them(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b", "c"):
        files.append(tmp_path / name)
        files[-1].write_bytes(bytes(8192))
    daemon = Launched(
        tmp_path, "--name", "idle", "--fd", "c=5", files=",".join(map(str, files)), names="a:root.img"
    )
    daemon.until("is ready at")
    with Client.connect(tmp_path / "run/idle/rpc.sock") as client:
        found: list[dict[str, Any]] = client.call("fd.list")
        assert [one["name"] for one in found] == ["a", "root.img", "c"]
        assert {(one["access"], one["size"], one["kind"]) for one in found} == {("rw", 8192, "file")}
    daemon.process.terminate()
    assert daemon.end()[0] == 0


@pytest.mark.parametrize(
    ("options", "names", "status", "says"),
    [
        (["--fd", "root"], "", 2, "xenpvd: cannot use --fd root: it must be NAME=N"),
        (["--fd", "root=77"], "", 2, "xenpvd: cannot use descriptor root: 77 was not passed on"),
        ([], "web 1", 2, "cannot call a descriptor 'web 1'"),
        ([], "dir", 1, "cannot use image fd:dir: it is a character device"),
    ],
)
def test_a_daemon_refuses(tmp_path: Path, options: list[str], names: str, status: int, says: str) -> None:
    daemon = Launched(tmp_path, "--name", "idle", *options, files="/dev/null" if names else "", names=names)
    code, said = daemon.end()
    assert (code, "Traceback" in said) == (status, False), said
    assert says in said


def test_a_definition_on_one_is_opened_before_the_machine_is_made(tmp_path: Path) -> None:
    (tmp_path / "shim").write_bytes(tiny_shim())
    (tmp_path / "g.toml").write_text(
        f'kernel = "{tmp_path}/shim"\nshim.path = "{tmp_path}/shim"\n'
        'disk = [ { vdev = "xvda", target = "fd:root" } ]\n'
    )
    (tmp_path / "empty").touch()
    config = ("--config", str(tmp_path / "g.toml"))
    code, said = Launched(tmp_path, *config).end()
    assert code == 1 and "the daemon has no descriptor root. Give it one (xenpvctl fd add" in said
    code, said = Launched(tmp_path, *config, files=str(tmp_path / "empty"), names="root").end()
    assert code == 1 and "cannot use image fd:root: it is empty" in said
