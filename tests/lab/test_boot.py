"""A real guest from its first hypercall to its last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import guest as assets
from tests.lab.conftest import Daemon


def test_boot_disk_console_xenstore_hot_add_shutdown(daemon: Daemon, folder: Path) -> None:
    daemon.start().at_the_shell()
    daemon.wait("ready")
    status = daemon.call("guest.status")
    assert list(status["boot_times"]) == ["created", "shim", "kernel", "xenbus", "devices", "ready"]
    assert status["hypercalls"] <= 40, status  # everything else stays in the kernel
    assert status["host"]["accel"] == "kvm-xen"

    assert "Xen version" in daemon.call("console.read", console="xen", since=0)["text"]
    assert "(XEN)" not in daemon.call("console.read", since=0)["text"]
    assert daemon.sh("cat /sys/hypervisor/type") == "xen"
    assert daemon.sh("cat /mnt/hello.txt") == assets.HELLO.strip()

    # a disk is hot-added, read and written by the guest, removed, and what it wrote is in the file
    second = folder / "b.img"
    second.write_bytes(b"hot".ljust(1 << 20, b"\0"))
    added = daemon.call("drive.add", vdev="xvdb", target=str(second), timeout=30)
    assert added["changed"] and added["drive"]["frontend_state"] == "Connected"
    assert daemon.sh("head -c 3 /dev/xvdb") == "hot"
    daemon.sh("printf guest | dd of=/dev/xvdb bs=512 seek=8 conv=sync,fsync 2>/dev/null")
    assert daemon.call("drive.remove", vdev="xvdb", timeout=30) == {"removed": True}
    assert second.read_bytes()[4096:4101] == b"guest"
    assert daemon.sh("ls /dev/xvdb 2>&1").endswith("No such file or directory")

    # the store: the guest announces what it can, and may not write what is not its own
    assert daemon.call("xenstore.read", path="/local/domain/1/control/feature-poweroff")["text"] == "1"
    assert daemon.call("xenstore.list", path="/local/domain/1/device/vbd") == ["51712"]

    daemon.sh(f"echo outside > /mnt/f; echo {'x' * 200} > /mnt/g; sync")
    ended = daemon.call("guest.shutdown", mode="poweroff", timeout=60)
    assert ended["acknowledged"] is not None and ended["state"] == "stopped"
    daemon.gone()
    assert assets.read_file(folder / "xvda.img", "/f") == b"outside\n"
    assert assets.read_file(folder / "xvda.img", "/g") == b"x" * 200 + b"\n"


def test_reboot_keeps_disks_console_and_daemon(daemon: Daemon) -> None:
    daemon.start().at_the_shell()
    pid = daemon.pid
    daemon.sh("echo before > /mnt/life; sync")
    end = daemon.call("console.read", since=-1)["end"]
    daemon.call("guest.shutdown", mode="reboot", timeout=60)
    daemon.wait("running")
    daemon.wait("devices")
    daemon.wait(f"console:{assets.READY}", since=end)  # the second one: the recording goes on
    assert daemon.sh("cat /mnt/life") == "before"
    assert daemon.pid == pid and daemon.call("guest.status")["state"] == "running"


def test_a_crash_is_told_with_the_guests_last_words(daemon: Daemon) -> None:
    daemon.start().at_the_shell()
    daemon.call("console.write", text="echo c > /proc/sysrq-trigger\n")
    daemon.wait("crashed")
    (crash,) = daemon.call("events.history", names=["guest.crash"])
    assert crash["data"]["reason"] == "crash"
    assert "Kernel panic" in crash["data"]["console_tail"]
    assert daemon.call("guest.status")["state"] == "crashed"  # kept for a look
    assert daemon.call("guest.start")["state"] == "running"  # and can be started again
    daemon.wait("devices")


def test_what_the_shim_says_of_a_kernel_that_is_none_reaches_the_user(
    daemon: Daemon, definition: dict[str, Any], folder: Path
) -> None:
    (folder / "kernel").write_bytes(b"#!/bin/sh\necho no kernel\n" * 100)
    daemon.file.write_text(assets.toml({**definition, "kernel": str(folder / "kernel")}))
    done = daemon.ctl("start", str(daemon.file), "--wait", "devices", "--timeout", "90")
    assert done.returncode == 1
    assert "Panic on CPU 0" in done.stderr and "Traceback" not in done.stderr, done.stderr
