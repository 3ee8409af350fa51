from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import pytest

from tests.ctl.conftest import Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.errors import StateError


def test_dump(
    xenpvctl: Xenpvctl, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.tar.gz"
    file.touch()
    monkeypatch.chdir(tmp_path)
    done = xenpvctl("dump", "web1", "-o", "a.tar.gz")
    assert (done.stdout, done.stderr) == (f"{file}  40.0 KiB\n", "")
    assert service.done == [f"guest_dump {file} False"]
    assert xenpvctl.json("dump", "web1", "-o", str(file))["core"] is None


def test_with_memory(xenpvctl: Xenpvctl, service: FakeService) -> None:
    done = xenpvctl("dump", "web1", "--memory")
    assert done.stdout.splitlines() == [
        "/d/web1.tar.gz  40.0 KiB",
        "/d/web1.core  128.0 MiB",
        "the guest ran on while its memory was written; pause it for one of a single moment",
    ]
    assert done.stderr == (
        "xenpvctl: /d/web1.tar.gz is not seen from here: the daemon's service has a /d of its own.\n"
    )
    assert service.done == ["guest_dump None True"]


def test_it_is_refused(xenpvctl: Xenpvctl, service: FakeService) -> None:
    service.faults["guest_dump"] = StateError("cannot dump the memory: the guest is stopped.", "stopped", [])
    assert "the guest is stopped" in xenpvctl("dump", "web1", "--memory", status=1).stderr


def test_a_file_of_the_daemons_alone(
    xenpvctl: Xenpvctl, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.tar.gz"
    opened = Path.open

    def refused(path: Path, mode: str = "r") -> IO[Any]:
        if path == file:  # root could
            raise PermissionError
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", refused)
    told = xenpvctl("dump", "web1", "-o", str(file)).stderr
    assert told == f"xenpvctl: {file} is readable for the daemon's user and root only.\n"
