"""A real systemd runs the daemon by the units that ``xenpvctl install-units`` writes, under all of their
restrictions, with no guest in it; tests/lab/test_systemd.py has one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.engine import needs_engine
from tests.systemd.root import LIBRARIES, PREPARE, XENPVCTL, Systemd, missing

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(180)]

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
"""
AS_OWNER = (
    *("setpriv", "--reuid", "owner", "--regid", "owner", "--init-groups"),
    *("env", "HOME=/home/owner", "XDG_RUNTIME_DIR=/run/user/owner"),
)


#: the unit's own command, but that the guest waits; and a watchdog that takes no minute. $1 is the unit
IDLE = r"""
set -e
mkdir -p "$1.d"
sed -n 's/^ExecStart=.*/[Service]\nWatchdogSec=4\nExecStart=\n& --no-start/p' "$1" > "$1.d/idle.conf"
"""


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    systemd = Systemd()
    try:
        systemd.run("sh", "-c", PREPARE)
        systemd.run("sh", "-c", IDLE, "sh", "/etc/systemd/system/xenpvd@.service")
        systemd.ctl("daemon-reload")
        yield systemd
    finally:
        systemd.close()


@pytest.fixture
def web1(systemd: Systemd) -> Iterator[str]:
    """Its definition is in place; it is not yet started, and its guest will not be."""
    systemd.run("sh", "-c", "echo 'kernel = \"/vmlinuz\"' > /etc/xenpvd/web1.toml")
    yield "xenpvd@web1"
    systemd.ctl("kill", "-s", "KILL", "xenpvd@web1", status=None)
    systemd.ctl("stop", "xenpvd@web1", status=None)
    systemd.ctl("reset-failed", status=None)


def call(systemd: Systemd, method: str, *params: str) -> Any:
    return json.loads(systemd.run(XENPVCTL, "call", "--json", "web1", method, *params))


def test_a_daemon_that_hangs_is_replaced(systemd: Systemd, web1: str) -> None:
    """P14."""
    systemd.ctl("start", web1)
    assert systemd.show(web1, "StatusText") == "defined"
    before = systemd.show(web1, "MainPID")
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


def test_a_dump_of_a_service(systemd: Systemd, web1: str) -> None:
    """It is in the service's own folder; elsewhere it is refused, or not seen."""
    systemd.ctl("start", web1)
    made = json.loads(systemd.run(XENPVCTL, "dump", "web1", "--json"))
    assert made["file"].startswith("/var/lib/xenpvd/web1/web1-")
    assert systemd.run("stat", "-L", "-c", "%a %s", made["file"]) == f"600 {made['size']}"
    assert "web1-" in systemd.run("tar", "tzf", made["file"])
    said = systemd.run(XENPVCTL, "dump", "web1", "-o", "/srv/web1.tar.gz", status=1)
    assert "Read-only file system" in said and "choose a file in /var/lib/xenpvd/web1, or none" in said
    said = systemd.run(XENPVCTL, "dump", "web1", "-o", "/tmp/web1.tar.gz")
    assert "is not seen from here: the daemon's service has a /tmp of its own" in said


def test_a_definition_read_anew(systemd: Systemd, web1: str) -> None:
    systemd.ctl("start", web1)
    systemd.run("sh", "-c", "echo 'on_crash = \"restart\"' >> /etc/xenpvd/web1.toml")
    systemd.ctl("reload", web1)
    assert call(systemd, "guest.config")["on_crash"] == "restart"
    systemd.run("sh", "-c", "echo 'memroy = 3' >> /etc/xenpvd/web1.toml")
    assert "failed" in systemd.ctl("reload", web1, status=1)
    assert systemd.show(web1, "ActiveState") == "active"
    assert "memroy: there is no such key" in systemd.journal(web1)


def test_a_guest_of_somebody_who_is_no_root(systemd: Systemd, web1: str) -> None:
    systemd.run("sh", "-c", OWNER)
    systemd.run(*AS_OWNER, XENPVCTL, "install-units", "--user")
    systemd.run(*AS_OWNER, "sh", "-c", IDLE, "sh", "/home/owner/.config/systemd/user/xenpvd@.service")
    systemctl = (*AS_OWNER, "systemctl", "--user", "--no-pager")
    systemd.run(*systemctl, "daemon-reload")
    systemd.run(*systemctl, "enable", "--now", web1)
    status = json.loads(systemd.run(*AS_OWNER, XENPVCTL, "call", "--json", "web1", "guest.status"))
    assert (status["name"], status["state"]) == ("web1", "defined")
    systemd.run(*systemctl, "stop", web1)
    assert systemd.run(*systemctl, "show", "--value", "-p", "Result", web1) == "success"
    systemd.ctl("stop", "owner")


#: writes to and reads from an image, through an engine that is once replaced; in the place of the daemon
ENGINE = r"""
import asyncio, os, signal, sys
sys.path[:0] = ["/opt/xenpvd/site", "/opt/xenpvd/packages"]
from xenpvd.backends.blkif.confine import restrict
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.config import DiskConfig
from xenpvd.tasks import in_thread
async def main():
    disk = DiskConfig(vdev="xvda", target="/srv/guests/disk.qcow2", format="qcow2")
    image = await EngineImage.start(disk)
    await in_thread(lambda: (image.write([memoryview(b"x" * 512)], 0), image.flush()))
    os.kill(image.describe().pid, signal.SIGKILL)
    found = bytearray(512)
    await in_thread(lambda: image.read([memoryview(found)], 0))
    assert found == b"x" * 512 and image.describe().restarts == 1
    image.close()
    await image.ended()
    assert restrict([], "/bin/true"), "the unit allows Landlock"
    print("all is well")
asyncio.run(main())
"""
IN_ITS_PLACE = """
set -e
install -d -g xenpvd -m 775 /srv/guests
qemu-img create -q -f qcow2 /srv/guests/disk.qcow2 1M
chgrp xenpvd /srv/guests/disk.qcow2
chmod 660 /srv/guests/disk.qcow2
cat > /srv/guests/engine.py <<'END'
SCRIPT
END
mkdir -p /etc/systemd/system/xenpvd@engine.service.d
cat > /etc/systemd/system/xenpvd@engine.service.d/instead.conf <<END
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart=/opt/xenpvd/python/bin/python3 /srv/guests/engine.py
END
systemctl daemon-reload
"""


@needs_engine
def test_an_engine_works_under_all_restrictions(systemd: Systemd) -> None:
    systemd.run("sh", "-c", IN_ITS_PLACE.replace("SCRIPT", ENGINE))
    systemd.ctl("start", "xenpvd@engine", status=None)
    assert "all is well" in systemd.journal("xenpvd@engine")


def test_the_sockets_of_another_daemon_of_that_name_are_left_alone(systemd: Systemd, web1: str) -> None:
    by_hand = "/opt/xenpvd/bin/xenpvd --name web1 --run-dir /run/xenpvd >/run/by-hand.log 2>&1 &"
    systemd.run("sh", "-c", f"mkdir -p /run/xenpvd; {by_hand}")
    systemd.run("sh", "-c", "until grep -q 'is ready' /run/by-hand.log; do sleep 0.1; done")
    assert "Assertion failed" in systemd.ctl("start", web1, status=1)
    assert call(systemd, "guest.status")["state"] == "defined"
    systemd.run(XENPVCTL, "call", "web1", "daemon.quit")
