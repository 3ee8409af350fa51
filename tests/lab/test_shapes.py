"""Every shape of guest that runs, on both accelerators: to its shell, with its disk, and to a clean end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon

Shape = dict[str, Any]


def run(daemon: Daemon, folder: Path, accel: str, **shape: Any) -> None:
    daemon.file.write_text(assets.toml({**assets.definition(folder / "xvda.img", **shape), "accel": accel}))
    daemon.start().at_the_shell()
    host = daemon.call("guest.status")["host"]
    assert host["accel"] == accel, host
    assert daemon.sh("nproc") == str(shape.get("vcpus", 1))
    assert daemon.sh("head -c 5 /mnt/hello.txt") == "Hello"
    assert len([vcpu for vcpu in daemon.call("vcpu.list") if vcpu["online"]]) == shape.get("vcpus", 1)
    daemon.sh("echo written > /mnt/w; sync")
    ended = daemon.call("guest.shutdown", mode="poweroff", timeout=90)
    assert ended["acknowledged"] is not None and ended["state"] == "stopped"
    daemon.gone()
    assert assets.read_file(folder / "xvda.img", "/w") == b"written\n"


@pytest.mark.parametrize(
    "shape",
    [
        {"shim": "4.14"},  # uses the hypercall page
        {"shim": "4.17", "vcpus": 2},
        {"shim": "4.20"},
        {"shim": "4.20", "vcpus": 4},
        {"shim": "4.17", "vcpus": 8, "memory": 512},
        {"kernel": "6.12", "vcpus": 2},
        {"type": "pvh"},
        {"type": "pvh", "kernel": "6.12", "vcpus": 2},
        {"memory": 4608, "vcpus": 2},  # beyond 4 GiB
    ],
    ids=lambda shape: "-".join(f"{key}:{value}" for key, value in shape.items()),
)
def test_on_kvms_xen_support(daemon: Daemon, folder: Path, shape: Shape) -> None:
    run(daemon, folder, "kvm-xen", **shape)


@pytest.mark.plain
@pytest.mark.parametrize(
    "shape",
    [
        {"shim": "4.14"},
        {"shim": "4.17"},
        {"shim": "4.17", "vcpus": 2},
        {"shim": "4.20", "vcpus": 2},
        {"shim": "4.20", "vcpus": 4, "kernel": "6.12"},
    ],
    ids=lambda shape: "-".join(f"{key}:{value}" for key, value in shape.items()),
)
def test_on_plain_kvm(daemon: Daemon, folder: Path, shape: Shape) -> None:
    run(daemon, folder, "kvm", **shape)


@pytest.mark.plain
def test_plain_kvm_hot_add_reboot_pause_and_balloon(daemon: Daemon, folder: Path) -> None:
    daemon.file.write_text(assets.toml({**assets.definition(folder / "xvda.img"), "vcpus": 2}))
    daemon.start().at_the_shell()
    host = daemon.call("guest.status")["host"]
    assert host["accel"] == ("kvm" if not host["xen_caps"] else "kvm-xen"), host
    second = folder / "b.img"
    second.write_bytes(b"hot".ljust(1 << 20, b"\0"))
    daemon.call("drive.add", vdev="xvdb", target=str(second), timeout=60)
    assert daemon.sh("head -c 3 /dev/xvdb") == "hot"
    assert daemon.call("drive.remove", vdev="xvdb", timeout=60) == {"removed": True}
    assert daemon.call("vcpu.set_online", count=1, timeout=60)["online"] == [0]
    assert daemon.call("vcpu.set_online", count=2, timeout=60)["online"] == [0, 1]
    assert daemon.call("memory.set_target", mib=200, timeout=90)["reached_mib"] == 200
    daemon.call("guest.pause")
    daemon.call("guest.resume")
    end = daemon.call("console.read", since=-1)["end"]
    daemon.call("guest.shutdown", mode="reboot", timeout=60)
    daemon.wait(f"console:{assets.READY}", since=end)
    assert daemon.sh("head -c 5 /mnt/hello.txt") == "Hello"


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_the_kernel_comes_from_the_disks_own_grub_menu(daemon: Daemon, folder: Path, kind: str) -> None:
    image = folder / "boot.img"
    shutil.copyfile(assets.boot_disk(), image)
    grub = assets.grub({"pv": "x86_64-xen", "pvh": "i386-xen_pvh"}[kind])
    definition = {**assets.definition(image), "type": kind, "kernel": str(grub), "cmdline": "", "memory": 384}
    del definition["ramdisk"]
    daemon.file.write_text(assets.toml(definition))
    daemon.start().at_the_shell()
    assert "from-grub" in daemon.sh("cat /proc/cmdline")
    assert daemon.call("guest.shutdown", mode="poweroff", timeout=60)["acknowledged"] is not None


def test_a_32_bit_pv_guest_reads_its_disk(daemon: Daemon, folder: Path) -> None:
    """GRUB's own: it has no 32-bit kernel to start, but comes as far as its menu on the disk."""
    image = folder / "boot.img"
    shutil.copyfile(assets.boot_disk(), image)
    definition = {**assets.definition(image), "kernel": str(assets.grub("i386-xen")), "cmdline": ""}
    del definition["ramdisk"]
    daemon.file.write_text(assets.toml(definition))
    daemon.start()
    daemon.wait("console:Booting `the demo guest'")
    assert "32-bit, PAE" in daemon.call("console.read", console="xen", since=0)["text"]
