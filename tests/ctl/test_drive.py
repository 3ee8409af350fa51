"""drive add, remove, list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService
from xenpvd.config import LimitsConfig


def test_add_list_remove(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert (
        xenpvctl("drive", "add", "web1", "xvdb", "/srv/data.img", "--ro").stdout
        == "xvdb connected in 41 ms\n"
    )
    again = xenpvctl("drive", "add", "web1", "xvdb", "/srv/data.img", "--ro").stdout
    assert again == "xvdb was there already: /srv/data.img, ro, 1.0 MiB, Connected\n"
    assert xenpvctl("drive", "add", "web1", "xvdc", "/srv/c", "--no-wait").stdout == "xvdc added\n"
    assert xenpvctl("drive", "list", "web1").stdout.splitlines() == [
        "VDEV  ACCESS  SIZE     STATE      GUEST      CACHE      PLANE   LIMITS  TARGET",
        "xvdb  ro      1.0 MiB  Connected  Connected  writeback  native  -       /srv/data.img",
        "xvdc  rw      1.0 MiB  Connected  Connected  writeback  native  -       /srv/c",
    ]
    assert xenpvctl("drive", "remove", "web1", "xvdb").stdout == "xvdb removed\n"
    assert xenpvctl("drive", "remove", "web1", "xvdb", "--missing-ok").stdout == "there was no xvdb\n"
    assert (
        xenpvctl.json("drive", "remove", "web1", "xvdb", status=1)["error"]["data"]["reason"] == "NOT_FOUND"
    )


def test_all_that_a_disk_may_be(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    limits = ("--bytes", "10M", "--ops", "200", "--burst", "2")
    more = ("--sector-size", "4096", "--cache", "directsync", "--no-discard", "--persistent")
    xenpvctl("drive", "add", "web1", "xvdb", "/b", *limits, *more)
    asked = daemon.service.asked_for["xvdb"]
    assert (asked.sector_size, asked.cache, asked.discard, asked.persistent) == (
        4096,
        "directsync",
        False,
        True,
    )
    assert asked.limits == LimitsConfig(bytes_per_second=10 << 20, ops_per_second=200, burst=2.0)
    daemon.do(lambda: daemon.service.with_drive("xvdb", error="the ring is broken", plane="python: limits"))
    (_, row) = xenpvctl("drive", "list", "web1").stdout.splitlines()
    assert re.split(" {2,}", row)[-4:] == [
        "directsync",
        "python",
        "10.0 MiB/s, 200 requests/s",
        "/b: the ring is broken",
    ]


def test_targets_are_made_absolute(
    xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert xenpvctl.json("drive", "add", "web1", "xvdb", "b.img")["drive"]["target"] == str(
        tmp_path / "b.img"
    )


def test_what_both_ends_say(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    xenpvctl("drive", "add", "web1", "xvdb", "/b")
    daemon.do(lambda: daemon.service.with_drive("xvdb", frontend_state="Closing", error="EIO"))
    assert "Connected (the guest's end: Closing): EIO" in xenpvctl("status", "web1").stdout


def test_a_name_that_xen_does_not_know(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    failed = xenpvctl("drive", "add", "web1", "nvme0n1", "/b", status=2)
    assert "cannot use VDEV: it must be a disk's name" in failed.stderr


def test_a_disk_may_be_called_by_its_number(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    assert xenpvctl("drive", "add", "web1", "0xca10", "/b", "--no-wait").stdout == "0xca10 added\n"
    assert xenpvctl("drive", "remove", "web1", "0xca10").stdout == "0xca10 removed\n"


def test_resize_flush_swap(xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path) -> None:
    xenpvctl("drive", "add", "web1", "xvdb", "/b")
    for text, said in (("20G", "20.0 GiB"), ("1536MiB", "1.5 GiB"), ("4096", "4.0 KiB"), ("1t", "1.0 TiB")):
        assert xenpvctl("drive", "resize", "web1", "xvdb", text).stdout == f"xvdb has {said}\n"
    assert xenpvctl("drive", "resize", "web1", "xvdb").stdout == "xvdb has 1.0 TiB\n"
    for text in ("many", "1.5G", "-1", "G"):
        assert "as 20G" in xenpvctl("drive", "resize", "web1", "xvdb", "--", text, status=2).stderr
    limits = ("--bytes", "10M", "--ops", "200")
    assert (
        xenpvctl("drive", "limit", "web1", "xvdb", *limits).stdout == "xvdb has 10.0 MiB/s, 200 requests/s\n"
    )
    assert xenpvctl("drive", "limit", "web1", "xvdb").stdout == "xvdb has no limits\n"
    assert xenpvctl("drive", "flush", "web1", "xvdb").stdout == "xvdb is flushed\n"
    assert xenpvctl("drive", "swap", "web1", "xvdb", "/c").stdout == "xvdb is /c now\n"
    assert "no such drive" in xenpvctl("drive", "swap", "web1", "xvdz", "/c", status=1).stderr
    assert xenpvctl.json("drive", "add", "web1", "xvdd", "--cdrom")["drive"]["target"] == ""
    assert xenpvctl("drive", "swap", "web1", "xvdd", "/disc.iso").stdout == "xvdd is /disc.iso now\n"
    assert xenpvctl("drive", "eject", "web1", "xvdd").stdout == "xvdd is empty\n"
    assert "only a cdrom can be empty" in xenpvctl("drive", "add", "web1", "xvde", status=2).stderr
