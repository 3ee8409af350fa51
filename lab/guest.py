"""The demo guest: an initramfs of busybox and one driver, and disk images made and read without root."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.cpio import Cpio
from lab.packages import GUEST_KERNEL, SHIM_4_17, SHIM_4_20, only
from lab.paths import asset, cache, locked, replacing
from lab.progress import LabError, step

FILES = Path(__file__).parent / "guest_files"
HELLO = "Hello from a xen-block disk that xenpvd serves.\n"
DISK_SIZE = 64 << 20

#: What the guest's console says, in this order, and then a prompt.
MOUNTED = "xenpvd-guest: xvda mounted"
READY = "xenpvd-guest: ready"
PROMPT = "guest# "


def kernel() -> Path:
    """The PV kernel, Debian's 6.1 for clouds."""
    return only(GUEST_KERNEL, "boot/vmlinuz-*")


def shim(version: str = "4.17") -> Path:
    """Xen's PV shim of ``version``, 4.17 or 4.20."""
    return only({"4.17": SHIM_4_17, "4.20": SHIM_4_20}[version], "usr/lib/xen-*/boot/xen-shim")


def ramdisk() -> Path:
    """The demo guest's initramfs."""
    return asset("demo-guest", "initrd.gz")


def disk() -> Path:
    """A pristine disk for xvda, holding hello.txt. Copy it before a guest writes to it."""
    return asset("demo-guest", "xvda.img")


def definition(image: Path) -> dict[str, Any]:
    """The demo guest with ``image`` as its xvda: a guest definition of xenpvd's."""
    return {
        "memory": 256,
        "kernel": str(kernel()),
        "ramdisk": str(ramdisk()),
        "cmdline": "console=hvc0",
        "shim": {"path": str(shim())},
        "disk": [{"vdev": "xvda", "target": str(image)}],
    }


def toml(data: Mapping[str, Any]) -> str:
    """Just enough TOML for a definition: JSON's strings and numbers are TOML's, too."""
    plain = {key: value for key, value in data.items() if not isinstance(value, dict | list)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in data.items():
        tables = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
        for table in tables:
            lines.append(f"[[{key}]]" if isinstance(value, list) else f"[{key}]")
            lines.extend(f"{name} = {json.dumps(inner)}" for name, inner in table.items())
    return "\n".join(lines) + "\n"


def tool(name: str) -> str:
    """The path of a program that may live in sbin, which a user's PATH often lacks."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise LabError(f"cannot find {name} on this machine. Run make setup.")
    return found


def initramfs() -> bytes:
    """Build the guest's initramfs, uncompressed."""
    busybox = Path(tool("busybox"))
    cpio = Cpio()
    for folder in ("dev", "proc", "sys", "mnt", "root", "tmp", "sbin"):
        cpio.folder(folder)
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/busybox", busybox.read_bytes(), 0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet not in ("busybox", "poweroff", "reboot", "halt", "init"):
            cpio.symlink(f"bin/{applet}", "busybox")
    cpio.file("lib/xen-blkfront.ko", only(GUEST_KERNEL, "lib/modules/*/**/xen-blkfront.ko").read_bytes())
    cpio.file("init", (FILES / "init").read_bytes(), 0o755)
    cpio.file("etc/profile", (FILES / "profile").read_bytes())
    for verb in ("poweroff", "reboot"):
        cpio.file(f"sbin/{verb}", (FILES / "poweroff").read_bytes(), 0o755)
    return cpio.finish()


def build() -> None:
    """Build the demo guest's files in the cache, unless they are what would be built."""
    with locked(cache() / "assets.lock"):
        _build()


def _build() -> None:
    content = initramfs()
    version = hashlib.sha256(content + HELLO.encode()).hexdigest()
    stamp = asset("demo-guest", "version")
    if stamp.exists() and stamp.read_text().strip() == version:
        return
    with step("build", "demo guest (initramfs, xvda.img)"), replacing(asset("demo-guest")) as folder:
        (folder / "initrd.gz").write_bytes(gzip.compress(content, 6, mtime=0))
        make_disk(folder / "xvda.img", DISK_SIZE, {"hello.txt": HELLO.encode()})
        (folder / "version").write_text(f"{version}\n")


def make_disk(path: Path, size: int, files: Mapping[str, bytes]) -> None:
    """Make an ext4 image of ``size`` bytes at ``path``, holding ``files`` (name: content).

    It has no journal: what a guest has synced is then in its place, where :func:`read_file` finds it.
    Raises LabError.
    """
    with tempfile.TemporaryDirectory(prefix="xenpvd-disk-") as name:
        for file, content in files.items():
            target = Path(name) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        path.unlink(missing_ok=True)
        with path.open("xb") as image:
            image.truncate(size)
        argv = [tool("mke2fs"), "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
        argv += ["-E", "root_owner=0:0,lazy_itable_init=0", "-d", name, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"cannot make {path}: mke2fs: {done.stderr.strip()}. Is the disk full?")


def read_file(image: Path, file: str) -> bytes:
    """The content of ``file`` in an ext4 image, read from outside. Raises FileNotFoundError, LabError."""
    if '"' in file:
        raise LabError(f"cannot read {file} in {image}: the name holds a quote.")
    argv = [tool("debugfs"), "-R", f'cat "{file}"', str(image)]
    done = subprocess.run(argv, capture_output=True)
    said = [
        line for line in done.stderr.decode(errors="replace").splitlines() if not line.startswith("debugfs ")
    ]
    if any("File not found" in line for line in said):
        raise FileNotFoundError(f"{image} has no {file}")
    if done.returncode or said:
        raise LabError(f"cannot read {file} in {image}: debugfs: {' '.join(said)}. Is it an ext4 image?")
    return done.stdout
