"""A real systemd runs a real guest by the unit that ``xenpvctl install-units`` writes, under all of its
restrictions. tests/systemd has what needs no guest."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import guest as assets
from tests.systemd.root import INSIDE, PREPARE, XENPVCTL, Systemd, missing

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(300)]

#: as root does it where there is no udev
KVM = """
set -e
if [ "$(stat -c %a /dev/kvm)" = 600 ]; then
    mknod /run/kvm c 10 232
    mount --bind /run/kvm /dev/kvm
    chgrp kvm /dev/kvm
    chmod 660 /dev/kvm
fi
"""

DEVICE = r"""
set -e
printf '[Service]\nDeviceAllow={} rw\nSupplementaryGroups=disk\n' \
    > /etc/systemd/system/xenpvd@.service.d/device.conf
systemctl daemon-reload
"""


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    systemd = Systemd()
    try:
        systemd.run("sh", "-c", PREPARE)
        systemd.run("sh", "-c", KVM)
        yield systemd
    finally:
        systemd.close()


@pytest.fixture
def device(systemd: Systemd) -> Iterator[str]:
    """A block device of the host, which docs/systemd.md lets the unit open, and that one only."""
    image = systemd.place / "device.img"
    image.write_bytes(b"block".ljust(1 << 20, b"\0"))
    losetup = ("losetup", "--find", "--show", image)
    loop = subprocess.run(losetup, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        shutil.chown(loop, group="disk")
        Path(loop).chmod(0o660)
        systemd.run("sh", "-c", DEVICE.format(loop))
        yield loop
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.fixture
def web1(systemd: Systemd, device: str) -> str:
    """Its definition is in place, its first image in /srv/guests; not yet started."""
    place = systemd.place / "web1"
    place.mkdir()
    shutil.copyfile(assets.disk(), place / "xvda.img")
    definition: dict[str, Any] = assets.definition("/srv/guests/web1.img")
    definition["disk"].append({"vdev": "xvdb", "target": device})
    for table, key in ((definition, "kernel"), (definition, "ramdisk"), (definition["shim"], "path")):
        copy = shutil.copy(table[key], place)  # a service sees no home, where the cache may be
        table[key] = str(INSIDE / "web1" / Path(copy).name)
    definition["console"] = {"log": "/var/log/xenpvd/web1/console.log"}
    (place / "web1.toml").write_text(assets.toml(definition))
    systemd.run("cp", INSIDE / "web1" / "web1.toml", "/etc/xenpvd/web1.toml")
    systemd.run("install", "-g", "xenpvd", "-m", "660", INSIDE / "web1" / "xvda.img", "/srv/guests/web1.img")
    return "xenpvd@web1"


def call(systemd: Systemd, method: str, *params: str) -> Any:
    return json.loads(systemd.run(XENPVCTL, "call", "--json", "web1", method, *params))


def test_a_guests_whole_life(systemd: Systemd, web1: str) -> None:
    systemd.ctl("enable", web1)
    systemd.ctl("start", web1)
    call(systemd, "guest.wait", f"for=console:{assets.READY}", "timeout=100")
    assert systemd.show(web1, "StatusText") in ("running: devices", "running: ready")
    status = call(systemd, "guest.status")
    assert status["host"]["accel"] == "kvm-xen"
    # its own user, without rights; the C data plane runs under the filter of system calls
    process = systemd.run("cat", f"/proc/{systemd.show(web1, 'MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
    assert fields["CapBnd"] == fields["CapEff"] == "0" * 16 and fields["Seccomp"] == "2"
    assert fields["Uid"].split()[0] not in ("0", str(Path(systemd.place).stat().st_uid))
    for drive in call(systemd, "drive.list"):
        assert drive["plane"].startswith("native, io_uring"), drive
    call(systemd, "console.write", "text=head -c 5 /dev/xvdb; echo ' re''ad'\n")
    call(systemd, "guest.wait", "for=console:block read", "timeout=60")

    log = "/var/log/xenpvd/web1/console.log"
    systemd.run("mv", log, f"{log}.old")
    systemd.ctl("reload", web1)
    call(systemd, "console.write", "text=echo be$((1))gin > /mnt/f; echo en$((1))d\n")
    call(systemd, "guest.wait", "for=console:en1d", "timeout=60")
    assert "en1d" in systemd.run("cat", log) and assets.READY in systemd.run("cat", f"{log}.old")

    systemd.ctl("stop", "xenpvd.target")
    systemd.until("inactive", "is-active", web1)  # who stops the target is not made to wait
    assert systemd.show(web1, "Result") == "success"
    assert systemd.run("ls", "/run/xenpvd") == ""
    systemd.run("cp", "/srv/guests/web1.img", INSIDE / "web1" / "after.img")
    assert assets.read_file(systemd.place / "web1" / "after.img", "/f") == b"be1gin\n"
    systemd.ctl("start", "xenpvd.target")
    assert systemd.show(web1, "ActiveState") == "active"
