"""A real guest on images that are not plain paths, one change of its definition, and its memory for gdb."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon


@pytest.fixture
def definition(definition: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """On xvda as qcow2, which another process serves."""
    if not (shutil.which("qemu-img") and shutil.which("qemu-storage-daemon")):
        pytest.skip("there is no qemu-img or qemu-storage-daemon: apt install qemu-utils qemu-system-common")
    raw = definition["disk"][0]["target"]
    image = tmp_path / "xvda.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    return definition | {"disk": [{"vdev": "xvda", "target": str(image), "format": "qcow2"}]}


def test_other_images_reload_and_dump(daemon: Daemon, definition: dict[str, Any], tmp_path: Path) -> None:
    daemon.start().at_the_shell()
    assert daemon.sh("head -c 5 /mnt/hello.txt") == "Hello"
    engine = daemon.call("drive.list")[0]["engine"]
    os.kill(engine["pid"], 9)  # nothing of what is flushed is lost, and the guest goes on
    assert daemon.sh("echo written > /mnt/w && sync && cat /mnt/w") == "written"
    assert daemon.call("drive.list")[0]["engine"]["restarts"] == 1

    data = tmp_path / "data.img"
    data.write_bytes(bytes(1 << 20))
    added = daemon.ctl("fd", "add", "web1", "data", str(data))
    assert added.returncode == 0, added.stderr
    daemon.call("drive.add", vdev="xvdb", target="fd:data", wait=True)
    daemon.sh("echo by descriptor | dd of=/dev/xvdb conv=sync,fsync 2>/dev/null")
    assert data.read_bytes().startswith(b"by descriptor\n")

    daemon.file.write_text(assets.toml(definition | {"on_poweroff": "preserve"}))
    assert daemon.call("daemon.reload") == {
        "applied": ["on_poweroff"], "next_start": [], "next_daemon": []
    }  # fmt: skip

    dump = daemon.ctl("dump", "web1", "--memory", "-o", str(tmp_path / "web1.tar.gz"))
    assert dump.returncode == 0, dump.stderr
    core = (tmp_path / "web1.core").read_bytes()
    assert core.startswith(b"\x7fELF") and b"by descriptor" in core and b"Linux version" in core

    daemon.call("guest.shutdown", timeout=90)
    daemon.wait("stopped")  # and its daemon is there, by the new policy
    daemon.call("daemon.quit")
    daemon.gone()
    assert (
        subprocess.run(["qemu-img", "check", "-q", definition["disk"][0]["target"]], check=False).returncode
        == 0
    )
