"""Debian's own xenstore tools at a running guest's xenstored.sock; its last test ends the guest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import guest as assets
from tests.backends.xenstore.test_xen_tools import Tools
from tests.lab.conftest import Daemon

HOME = "/local/domain/1"
VBD = f"{HOME}/device/vbd/51712"


@pytest.fixture(scope="module")
def web() -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-test-", dir="/dev/shm"))
    shutil.copyfile(assets.disk(), folder / "xvda.img")
    daemon = Daemon(folder, assets.definition(folder / "xvda.img"))
    try:
        daemon.start().at_the_shell().wait("devices")
        yield daemon
    finally:
        daemon.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tools(web: Daemon) -> Tools:
    return Tools(web.run_dir / web.name / "xenstored.sock")


def test_ls_shows_all_that_there_is(web: Daemon, tools: Tools) -> None:
    lines = [line.split() for line in tools("ls", "-fp", "/").splitlines()]
    told = {words[0]: (words[2], words[-1]) for words in lines}
    assert told[f"{VBD}/state"] == ('"4"', "(n1,r0)")
    nodes = [node["path"] for node in web.call("xenstore.tree", path="/", depth=64)]
    assert ["/", *told] == nodes


def test_read_list_exists(web: Daemon, tools: Tools) -> None:
    back = tools("read", f"{VBD}/backend").strip()
    assert tools("read", f"{back}/frontend", f"{back}/state") == f"{VBD}\n4\n"
    assert tools("list", f"{HOME}/device/vbd") == "51712\n"
    tools("exists", f"{VBD}/ring-ref")
    tools("exists", f"{VBD}/nothing", status=1)


def test_write_chmod_rm(web: Daemon, tools: Tools) -> None:
    node = f"{HOME}/data/role"
    tools("write", node, "web")
    tools("chmod", node, "n0", "r1")
    (found,) = web.call("xenstore.tree", path=node)
    assert (found["value"], found["perms"]) == ("web", ["n0", "r1"])
    tools("rm", node)
    assert "role" not in web.call("xenstore.list", path=f"{HOME}/data")


def test_watch_sees_us_and_the_guest(web: Daemon, tools: Tools) -> None:
    """A key is pressed: by xenstore-write, and the guest takes it."""
    key = f"{HOME}/control/sysrq"
    since = web.call("console.read", since=-1)["end"]
    web.sh("echo 8 > /proc/sys/kernel/printk; echo 1 > /proc/sys/kernel/sysrq")
    with tools.start("watch", "-n", "3", key) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == f"{key}\n"
        tools("write", key, "h")
        assert watch.stdout.read() == f"{key}\n" * 2 and watch.wait(60) == 0
    web.wait("console:sysrq: HELP", since=since)
    web.sh("dmesg -n 1")


def test_control(web: Daemon, tools: Tools) -> None:
    assert tools("control", "check") == "OK\n"
    owned = next(line for line in tools("control", "quota", "1").splitlines() if line.startswith("nodes"))
    tree = web.call("xenstore.tree", path="/", depth=64)
    assert int(owned.split()[-1]) == sum(node["perms"][0][1:] == "1" for node in tree)
    assert tools("control", "log", "on") == "OK\n"
    tools("read", f"{VBD}/state")
    assert tools("control", "log", "off") == "OK\n"
    assert f"READ {VBD}/state -> OK" in web.log()
    assert tools("control", "print", "from the lab") == "OK\n" and "from the lab" in web.log()


def test_shutdown_by_a_write_ends_the_guest(web: Daemon, tools: Tools) -> None:
    tools("write", f"{HOME}/control/shutdown", "poweroff")
    web.gone()
    assert "a life ends: poweroff" in web.log()
