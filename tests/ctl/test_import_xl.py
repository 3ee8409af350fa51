"""xenpvctl import-xl: what it prints is what the daemon takes, whatever was in the file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ctl.conftest import Xenpvctl
from xenpvd import config
from xenpvd.ctl.cli import cli
from xenpvd.ctl.import_xl import FILE_MAX

#: configurations as they lie around on hosts: (file, what the model makes of it beyond the defaults)
GUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "debian, by xen-create-image": (
        """\
#
# Configuration file for the Xen instance www, created
#
kernel      = '/boot/vmlinuz-6.1.0-18-amd64'
extra       = 'elevator=noop'
ramdisk     = '/boot/initrd.img-6.1.0-18-amd64'

vcpus       = '2'
memory      = '1024'

root        = '/dev/xvda2 ro'
disk        = [
                  'phy:/dev/vg0/www-disk,xvda2,w',
                  'phy:/dev/vg0/www-swap,xvda1,w',
              ]

name        = 'www'
vif         = [ 'ip=10.0.0.5 ,mac=00:16:3E:7B:23:16' ]

on_poweroff = 'destroy'
on_reboot   = 'restart'
on_crash    = 'restart'
""",
        {
            "name": "www", "memory": 1024, "vcpus": 2,
            "kernel": "/boot/vmlinuz-6.1.0-18-amd64", "ramdisk": "/boot/initrd.img-6.1.0-18-amd64",
            "cmdline": "root=/dev/xvda2 ro elevator=noop",
            "disk": [{"vdev": "xvda2", "target": "/dev/vg0/www-disk"},
                     {"vdev": "xvda1", "target": "/dev/vg0/www-swap"}],
            "on_crash": "restart", "on_watchdog": "destroy",
        },
    ),
    "centos, by virt-install": (
        """\
name = "centos5"
uuid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
maxmem = 2048
memory = 2048
vcpus = 4
bootloader = "/usr/bin/pygrub"
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "restart"
vfb = [ "type=vnc,vncunused=1,keymap=en-us" ]
disk = [ "tap:aio:/var/lib/xen/images/centos5.img,xvda,w" ]
vif = [ "mac=00:16:36:0a:0b:0c,bridge=xenbr0,script=vif-bridge" ]
""",
        {
            "name": "centos5", "memory": 2048, "vcpus": 4, "kernel": "pvgrub",
            "disk": [{"vdev": "xvda", "target": "/var/lib/xen/images/centos5.img"}],
            "on_crash": "restart", "on_watchdog": "destroy",
        },
    ),
    "a PVH guest of today": (
        """\
type = "pvh"
name = "alpine"
kernel = "/var/lib/xen/alpine/vmlinuz"
ramdisk = "/var/lib/xen/alpine/initramfs"
cmdline = "console=hvc0 modules=ext4 root=/dev/xvda"
memory = 512
vcpus = 1
disk = [ "format=raw, vdev=xvda, access=rw, target=/var/lib/xen/alpine/root.img" ]
vif = [ "bridge=xenbr0" ]
""",
        {
            "name": "alpine", "type": "pvh", "kernel": "/var/lib/xen/alpine/vmlinuz",
            "ramdisk": "/var/lib/xen/alpine/initramfs", "cmdline": "console=hvc0 modules=ext4 root=/dev/xvda",
            "memory": 512, "disk": [{"vdev": "xvda", "target": "/var/lib/xen/alpine/root.img"}],
            "on_crash": "destroy", "on_watchdog": "destroy",
        },
    ),
    "a shim, as after Meltdown": (
        """\
type = "pvh"
pvshim = 1
name = "old"
kernel = "/guests/old/vmlinuz"
extra = "root=/dev/sda1"
memory = 0x100
disk = [ "/guests/old/disk.img,raw,sda1,rw" , "/guests/tools.iso,,hdc,cdrom" ]
""",
        {
            "name": "old", "kernel": "/guests/old/vmlinuz", "cmdline": "root=/dev/sda1", "memory": 256,
            "disk": [{"vdev": "sda1", "target": "/guests/old/disk.img"},
                     {"vdev": "hdc", "device": "cdrom", "target": "/guests/tools.iso"}],
            "on_crash": "destroy", "on_watchdog": "destroy",
        },
    ),
    "hostile": (
        'name = "x"; kernel = "/k\\x7f\\"\\n"; extra = "\\x1b[2J # \'\\\\"\nuuid = "a"\n'
        'disk = [ "format=qed,vdev=xvda,target=/a\\nkernel = 1.qed" ]',
        {
            "name": "x", "kernel": '/k\x7f"\n', "cmdline": "\x1b[2J # '\\",
            "disk": [{"vdev": "xvda", "target": "/a\nkernel = 1.raw"}],
            "on_crash": "destroy", "on_watchdog": "destroy",
        },
    ),
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    file = folder / "guest.cfg"
    file.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    return file


@pytest.mark.parametrize(("text", "expected"), GUESTS.values(), ids=GUESTS.keys())
def test_the_model_takes_what_is_printed(
    xenpvctl: Xenpvctl, tmp_path: Path, text: str, expected: dict[str, Any]
) -> None:
    file = write(tmp_path, text)
    done = xenpvctl("import-xl", str(file))
    made = tmp_path / "guest.toml"
    made.write_text(done.stdout, encoding="utf-8")
    assert config.load(made) == config.parse(expected, "expected")
    assert xenpvctl.json("import-xl", str(file))["config"] == tomllib.loads(done.stdout)


def test_every_note_is_on_stderr_and_in_the_comments(xenpvctl: Xenpvctl, tmp_path: Path) -> None:
    file = write(tmp_path, GUESTS["centos, by virt-install"][0])
    done = xenpvctl("import-xl", str(file))
    notes = xenpvctl.json("import-xl", str(file))["notes"]
    assert [note["key"] for note in notes] == ["uuid", "bootloader", "vfb", "vif"]
    for note in notes:
        assert f"xenpvctl: {file}: {note['key']}: {note['what']}.\n" in done.stderr
        assert f"#   {note['key']}: {note['what']}\n" in done.stdout
    assert done.stdout.startswith("# Made of guest.cfg by: xenpvctl import-xl; not as it was:\n")


def test_nothing_of_the_file_steers_a_terminal_or_ends_a_comment(xenpvctl: Xenpvctl, tmp_path: Path) -> None:
    done = xenpvctl("import-xl", str(write(tmp_path, GUESTS["hostile"][0])))
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert [line for line in done.stdout.splitlines() if line.startswith("kernel")] == [
        'kernel = "/k\\u007f\\"\\n"'
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builder = 'hvm'\nkernel = '/usr/lib/xen/boot/hvmloader'", "line 1: builder: an HVM guest needs"),
        ("import os\nname = 'x'", "line 1: after import an = is wanted."),
        ("name = 'x'", "there is neither kernel nor bootloader"),
        ("kernel = '/k'; memory = 99999999", "memory: it must be at most 1048576."),
        ("kernel = '/k'; disk = ['/a,,xvda', '/b,,xvda']", "disk: two disks are called xvda."),
        (
            "kernel = '/k'; disk = ['/a,,floppy']",
            "disk.0.vdev: it must be a disk's name, as xvda or xvdb1, or its number.",
        ),
    ],
)
def test_what_is_impossible(xenpvctl: Xenpvctl, tmp_path: Path, text: str, message: str) -> None:
    done = xenpvctl("import-xl", str(write(tmp_path, text)), status=1)
    assert done.stdout == ""
    assert done.stderr.startswith(f"xenpvctl: cannot import {tmp_path}/guest.cfg: {message}")


def test_files_that_are_none(xenpvctl: Xenpvctl, tmp_path: Path) -> None:
    assert "No such file" in xenpvctl("import-xl", str(tmp_path / "none.cfg"), status=2).stderr
    assert "no regular file" in xenpvctl("import-xl", "/dev/zero", status=2).stderr
    large = write(tmp_path, "#" * (FILE_MAX + 1))
    assert "too large" in xenpvctl("import-xl", str(large), status=2).stderr


_KEYS = st.sampled_from([
    "name", "type", "builder", "memory", "maxmem", "vcpus", "maxvcpus", "kernel", "ramdisk", "cmdline",
    "root", "extra", "bootloader", "firmware", "pvshim", "pvshim_cmdline", "on_crash", "disk", "channel",
    "vif", "x.y",
])  # fmt: skip
_ATOMS = st.one_of(
    st.sampled_from(["'pv'", "'pvh'", "1", "64", "'destroy'", "'/k'", "'name=a'", "'/a,,xvda'", "'a b'"]),
    st.text(max_size=12).map(repr),
    st.integers().map(str),
)
_VALUES = st.one_of(_ATOMS, st.lists(_ATOMS, max_size=3).map(lambda atoms: f"[{','.join(atoms)}]"))
_SETTINGS = st.lists(st.tuples(_KEYS, _VALUES).map(" = ".join), max_size=8).map("\n".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(_SETTINGS, _SETTINGS.map(lambda text: f"kernel = '/k'\n{text}")))
def test_whatever_is_in_the_file(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text.encode("utf-8", errors="replace").decode())
    done = CliRunner().invoke(cli, ["import-xl", str(file)])
    if done.exit_code == 0:
        config.parse(
            json.loads(json.dumps(tomllib.loads(done.stdout))) | {"kernel": "/k", "ramdisk": None}, "it"
        )
    else:
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
        assert done.stderr.startswith("xenpvctl: cannot import ") and done.stdout == ""
