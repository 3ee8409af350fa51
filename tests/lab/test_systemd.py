"""A real systemd runs the units that ``xenpvctl install-units`` writes, and real guests in them, under all of
their restrictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import guest as assets
from tests.lab.systemd import INSIDE, LIBRARIES, Systemd, missing

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(300)]

XENPVCTL = "/opt/xenpvd/bin/xenpvctl"
#: as root does it; the folder of the images is that of docs/systemd.md
PREPARE = f"""
set -e
{XENPVCTL} install-units
systemd-sysusers
if [ "$(stat -c %a /dev/kvm)" = 600 ]; then  # no udev here
    mknod /run/kvm c 10 232
    mount --bind /run/kvm /dev/kvm
    chgrp kvm /dev/kvm
    chmod 660 /dev/kvm
fi
mkdir -p /etc/xenpvd /etc/systemd/system/xenpvd@.service.d
printf '[Service]\nEnvironment=LD_LIBRARY_PATH={LIBRARIES}\nReadWritePaths=/srv/guests\n' \
    > /etc/systemd/system/xenpvd@.service.d/test.conf
mkdir -p /run/srv/guests
mount --bind /run/srv /srv
systemctl daemon-reload
"""

#: somebody who is no root, with a systemd of his own, as user@.service starts it for who logs in
OWNER = f"""
set -e
printf 'u owner - - /home/owner /bin/sh\nm owner kvm\n' > /etc/sysusers.d/owner.conf
systemd-sysusers
mkdir -p /run/home
mount --bind /run/home /home
install -d -o owner -g owner -m 700 /home/owner /run/user/owner
cat > /etc/systemd/system/owner.service <<END
[Service]
User=owner
Type=notify
ExecStart=/lib/systemd/systemd --user --unit=basic.target
Environment=HOME=/home/owner XDG_RUNTIME_DIR=/run/user/owner LD_LIBRARY_PATH={LIBRARIES}
Delegate=yes
KillMode=mixed
END
systemctl daemon-reload
systemctl start owner
install -D -o owner -g owner /etc/xenpvd/web1.toml /home/owner/.config/xenpvd/web1.toml
chown -R owner:owner /home/owner/.config
chown owner /srv/guests/web1.img
"""
AS_OWNER = (
    *("setpriv", "--reuid", "owner", "--regid", "owner", "--init-groups"),
    *("env", "HOME=/home/owner", "XDG_RUNTIME_DIR=/run/user/owner"),
)


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    systemd = Systemd()
    try:
        systemd.run("sh", "-c", PREPARE)
        yield systemd
    finally:
        systemd.close()


@pytest.fixture
def web1(systemd: Systemd) -> Iterator[str]:
    """Its definition is in place, its image in /srv/guests; not yet started."""
    place = systemd.place / "web1"
    place.mkdir()
    shutil.copyfile(assets.disk(), place / "xvda.img")
    definition: dict[str, Any] = assets.definition("/srv/guests/web1.img")
    for table, key in ((definition, "kernel"), (definition, "ramdisk"), (definition["shim"], "path")):
        copy = shutil.copy(table[key], place)  # a service sees no home, where the cache may be
        table[key] = str(INSIDE / "web1" / Path(copy).name)
    definition["console"] = {"log": "/var/log/xenpvd/web1/console.log"}
    (place / "web1.toml").write_text(assets.toml(definition))
    systemd.run("cp", INSIDE / "web1" / "web1.toml", "/etc/xenpvd/web1.toml")
    systemd.run("install", "-g", "xenpvd", "-m", "660", INSIDE / "web1" / "xvda.img", "/srv/guests/web1.img")
    yield "xenpvd@web1"
    systemd.ctl("kill", "-s", "KILL", "xenpvd@web1", status=None)
    systemd.ctl("stop", "xenpvd@web1", status=None)
    systemd.ctl("reset-failed", status=None)
    shutil.rmtree(place)


def call(systemd: Systemd, method: str, *params: str) -> Any:
    return json.loads(systemd.run(XENPVCTL, "call", "--json", "web1", method, *params))


def test_a_guests_whole_life(systemd: Systemd, web1: str) -> None:
    systemd.ctl("enable", web1)
    systemd.ctl("start", web1)
    call(systemd, "guest.wait", f"for=console:{assets.READY}", "timeout=100")
    assert systemd.show(web1, "StatusText") == "running: devices"
    status = call(systemd, "guest.status")
    assert status["host"]["accel"] == "kvm-xen"
    # its own user, without rights; the C data plane runs under the filter of system calls
    process = systemd.run("cat", f"/proc/{systemd.show(web1, 'MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
    assert fields["CapBnd"] == fields["CapEff"] == "0" * 16 and fields["Seccomp"] == "2"
    assert fields["Uid"].split()[0] not in ("0", str(Path(systemd.place).stat().st_uid))
    (drive,) = call(systemd, "drive.list")
    assert drive["plane"].startswith("native, io_uring"), drive

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


def test_a_daemon_that_hangs_is_replaced(systemd: Systemd, web1: str) -> None:
    folder = f"/etc/systemd/system/{web1}.service.d"
    systemd.run(
        "sh", "-c", f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=20\\n' > {folder}/watchdog.conf"
    )
    systemd.ctl("daemon-reload")
    systemd.ctl("start", web1)
    call(systemd, "guest.wait", f"for=console:{assets.READY}", "timeout=100")
    before = systemd.show(web1, "MainPID")
    assert systemd.show(web1, "NRestarts") == "0", "a boot is no fault"
    systemd.ctl("kill", "-s", "STOP", web1)
    systemd.until("1", "show", "--value", "-p", "NRestarts", web1)
    systemd.until("active", "is-active", web1)
    assert systemd.show(web1, "MainPID") != before
    journal = systemd.journal(web1)
    assert "Watchdog timeout" in journal and "Fatal Python error: Aborted" in journal and "in run" in journal


def test_a_definition_that_is_wrong_is_not_tried_again(systemd: Systemd, web1: str) -> None:
    systemd.run("sh", "-c", "echo 'memroy = 3' > /etc/xenpvd/web1.toml")
    assert "failed" in systemd.ctl("start", web1, status=1)
    assert systemd.show(web1, "ActiveState") == "failed" and systemd.show(web1, "NRestarts") == "0"
    assert "memroy: there is no such key" in systemd.journal(web1)


def test_a_guest_of_somebody_who_is_no_root(systemd: Systemd, web1: str) -> None:
    systemd.run("sed", "-i", "/^log = /d", "/etc/xenpvd/web1.toml")
    systemd.run("sh", "-c", OWNER)
    systemd.run(*AS_OWNER, XENPVCTL, "install-units", "--user")
    systemctl = (*AS_OWNER, "systemctl", "--user", "--no-pager")
    systemd.run(*systemctl, "daemon-reload")
    systemd.run(*systemctl, "enable", "--now", web1)
    systemd.run(
        *AS_OWNER, XENPVCTL, "call", "web1", "guest.wait", f"for=console:{assets.READY}", "timeout=100"
    )
    (drive,) = json.loads(systemd.run(*AS_OWNER, XENPVCTL, "call", "--json", "web1", "drive.list"))
    assert drive["plane"].startswith("native, io_uring"), drive
    systemd.run(*systemctl, "stop", web1)
    assert systemd.run(*systemctl, "show", "--value", "-p", "Result", web1) == "success"
    systemd.ctl("stop", "owner")


def test_the_sockets_of_another_daemon_of_that_name_are_left_alone(systemd: Systemd, web1: str) -> None:
    start = f"{XENPVCTL} start --paused /etc/xenpvd/web1.toml"
    packages = "PYTHONPATH=/opt/xenpvd/site:/opt/xenpvd/packages"
    systemd.run("sh", "-c", f"mkdir -p /var/log/xenpvd/web1; {packages} {start}")
    assert "Assertion failed" in systemd.ctl("start", web1, status=1)
    assert call(systemd, "guest.status")["state"] == "paused"
    systemd.run(XENPVCTL, "destroy", "web1")
