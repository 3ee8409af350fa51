"""fd add, list and remove; and drives on what was added."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.views import DescriptorInfo


def test_add_list_remove(
    xenpvctl: Xenpvctl, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.img").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(tmp_path)
    assert xenpvctl("fd", "add", "web1", "data", "b.img").stdout == "data is b.img, rw\n"
    assert xenpvctl("fd", "add", "web1", "data", "b.img").stdout == "data is b.img, rw, and was so already\n"
    assert xenpvctl("drive", "add", "web1", "xvdb", "fd:data").stdout == "xvdb connected in 41 ms\n"
    assert service.asked_for["xvdb"].target == "fd:data"
    assert xenpvctl("fd", "list", "web1").stdout.splitlines() == [
        "FD    KIND  ACCESS  SIZE     DRIVES  PATH",
        f"data  file  rw      1.0 MiB  -       {tmp_path}/b.img",
    ]
    service.descriptors["data"] = DescriptorInfo("data", "file", "rw", 0, ("xvda", "xvdb"), "/a\x1b[2J")
    assert xenpvctl("fd", "list", "web1").stdout.splitlines()[1].endswith("  xvda xvdb  /a\\x1b[2J")
    service.descriptors["data"] = DescriptorInfo(
        "data", "file", "rw", 0
    )  # without /proc, or an older daemon's
    assert xenpvctl("fd", "list", "web1").stdout.splitlines()[1].endswith("  -       -")
    assert xenpvctl("fd", "remove", "web1", "data").stdout == "data removed\n"
    assert xenpvctl("fd", "remove", "web1", "data", "--missing-ok").stdout == "there was no data\n"
    assert xenpvctl.json("fd", "remove", "web1", "data", status=1)["error"]["data"]["reason"] == "NOT_FOUND"


def test_what_cannot_be_opened(xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        said = xenpvctl("fd", "add", "web1", "data", str(path), status=1).stderr
        assert f"cannot open {path}: {why}" in said
    xenpvctl("fd", "add", "web1", "data", str(tmp_path / "fifo"))  # it does not wait; the daemon refuses it


def test_read_only(xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path) -> None:
    """It is opened so, whatever the caller's rights are."""
    (tmp_path / "b.img").write_bytes(bytes(512))
    flags: list[int] = []
    really = os.open

    def note(path: str, how: int) -> int:
        flags.append(how)
        return really(path, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xenpvd.ctl.descriptor.os.open", note)
        xenpvctl("fd", "add", "web1", "data", str(tmp_path / "b.img"), "--ro")
    assert flags[0] & os.O_ACCMODE == os.O_RDONLY
