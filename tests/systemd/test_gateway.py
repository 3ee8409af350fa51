"""The gateway under a real systemd, by the units that ``xenpvctl install-units`` writes: started by the first
who comes, with nothing but its socket, before a daemon that runs as its own unit does."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.systemd.root import LIBRARIES, PREPARE, Systemd, missing
from tests.systemd.test_real_systemd import IDLE

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(180)]

DIGEST = hashlib.sha256(b"secret").hexdigest()
#: as root does it (docs/gateway.md); a network of our own has no loopback at first
SET_UP = rf"""
set -e
echo 'tokens = "gateway.tokens"' > /etc/xenpvd/gateway.toml
install -g xenpvdkeys -m 640 /dev/null /etc/xenpvd/gateway.tokens
echo '{DIGEST} admin' > /etc/xenpvd/gateway.tokens
echo 'kernel = "/vmlinuz"' > /etc/xenpvd/web1.toml
mkdir -p /etc/systemd/system/xenpvd-gateway.service.d
printf '[Service]\nEnvironment=LD_LIBRARY_PATH={LIBRARIES}\n' \
    > /etc/systemd/system/xenpvd-gateway.service.d/test.conf
"""
#: without ip(8): SIOCSIFFLAGS, IFF_UP
LOOPBACK = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH22x", b"lo", 1))
"""
ASK = """
import sys, urllib.request
path, body = sys.argv[1:]
headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8443" + path, body.encode() or None, headers)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
PYTHON = "/opt/xenpvd/python/bin/python3"


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    systemd = Systemd()
    try:
        systemd.run("sh", "-c", PREPARE + SET_UP)
        systemd.run("sh", "-c", IDLE, "sh", "/etc/systemd/system/xenpvd@.service")
        systemd.run(PYTHON, "-c", LOOPBACK)
        systemd.ctl("daemon-reload")
        yield systemd
    finally:
        systemd.close()


def ask(systemd: Systemd, path: str, message: Any = None) -> Any:
    return json.loads(systemd.run(PYTHON, "-c", ASK, path, json.dumps(message) if message else ""))


def test_the_first_who_comes_starts_it(systemd: Systemd) -> None:
    systemd.ctl("start", "xenpvd-gateway.socket")
    assert systemd.show("xenpvd-gateway.service", "ActiveState") == "inactive"
    assert ask(systemd, "/v1/guests") == {"role": "admin", "guests": []}
    assert systemd.show("xenpvd-gateway.service", "ActiveState") == "active"
    systemd.ctl("start", "xenpvd@web1")  # comes later than the gateway
    systemd.until("active", "is-active", "xenpvd@web1")
    ping = {"jsonrpc": "2.0", "method": "daemon.ping", "id": 1}
    assert "result" in ask(systemd, "/v1/guests/web1/rpc", ping)
    while not (found := ask(systemd, "/v1/guests")["guests"]):
        time.sleep(0.1)  # a list is good for a second
    (guest,) = found
    assert (guest["name"], guest["state"], guest["why"]) == ("web1", "defined", None)
    pid = systemd.show("xenpvd-gateway.service", "MainPID")
    links = systemd.run("nsenter", "-n", "-t", pid, "cat", "/proc/self/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in links] == ["lo"], "no network but what it was given"
    systemd.ctl("stop", "xenpvd@web1", "xenpvd-gateway.service")
    assert systemd.show("xenpvd-gateway.service", "Result") == "success"


def test_a_reload_reads_the_files_anew(systemd: Systemd) -> None:
    systemd.ctl("restart", "xenpvd-gateway.service")
    assert ask(systemd, "/v1/guests")["role"] == "admin"
    pid = systemd.show("xenpvd-gateway.service", "MainPID")
    systemd.run("sh", "-c", f"echo '{DIGEST} viewer' > /etc/xenpvd/gateway.tokens")
    systemd.ctl("reload", "xenpvd-gateway.service")
    while ask(systemd, "/v1/guests")["role"] != "viewer":
        time.sleep(0.1)  # systemd has only sent the signal
    systemd.run("sh", "-c", "echo none > /etc/xenpvd/gateway.tokens")
    systemd.ctl("reload", "xenpvd-gateway.service")
    while "line 1 is not SHA256" not in systemd.journal("xenpvd-gateway"):
        time.sleep(0.1)
    assert ask(systemd, "/v1/guests")["role"] == "viewer"
    assert systemd.show("xenpvd-gateway.service", "MainPID") == pid
    systemd.run("sh", "-c", f"echo '{DIGEST} admin' > /etc/xenpvd/gateway.tokens")
    systemd.ctl("stop", "xenpvd-gateway.service")


def test_a_fault_is_told_and_not_tried_again(systemd: Systemd) -> None:
    systemd.run("sh", "-c", "echo 'token = 7' > /etc/xenpvd/gateway.toml")
    systemd.ctl("restart", "xenpvd-gateway.service", status=None)
    systemd.until("failed", "is-active", "xenpvd-gateway.service")
    assert "token: there is no such key" in systemd.journal("xenpvd-gateway")
    assert systemd.show("xenpvd-gateway.service", "NRestarts") == "0"
