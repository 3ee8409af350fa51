"""The demo guest: an initramfs of busybox and one driver, and disk images made and read without root."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import packages
from lab.cpio import Cpio
from lab.paths import asset, cache, locked, replacing
from lab.progress import LabError, step

FILES = Path(__file__).parent / "guest_files"
HELLO = "Hello from a xen-block disk that xenpvd serves.\n"
DISK_SIZE = 64 << 20

#: What the guest's console says, in this order, and then a prompt.
MOUNTED = "xenpvd-guest: xvda mounted"
READY = "xenpvd-guest: ready"
PROMPT = "guest# "
#: on the command line of a kernel that GRUB has taken from :func:`boot_disk`
FROM_GRUB = "from-grub"

#: GRUB for PV reads a kernel of the packings gzip, xz and LZO only (2.06), Debian's for clouds have others
GRUB_CFG = f"""\
set timeout=0
menuentry "the demo guest" {{
    if [ "$grub_platform" = xen ]; then set kernel=vmlinux.gz; else set kernel=vmlinuz; fi
    linux /boot/$kernel console=hvc0 {FROM_GRUB}
    initrd /boot/initrd.gz
}}
"""
#: MiB: a shim sets 128 aside in one piece for 6.12, more than it finds in 256
MEMORY = {"6.1": 256, "6.12": 384}


def kernel(version: str = "6.1") -> Path:
    """A kernel for the guest, Debian's for clouds: 6.1 or 6.12. It runs as PV and as PVH."""
    return packages.only(packages.GUEST_KERNELS[version], "boot/vmlinuz-*")


def shim(version: str = "4.17") -> Path:
    """Xen's PV shim of ``version``: 4.14, 4.17 or 4.20."""
    return packages.only(packages.SHIMS[version], "usr/lib/xen-*/boot/xen-shim")


def grub(platform: str) -> Path:
    """GRUB as a kernel, which boots what the disk's menu names: x86_64-xen, i386-xen (PV), i386-xen_pvh."""
    return packages.only(packages.GRUB, f"usr/lib/grub-xen/grub-{platform}.bin")


def ramdisk(version: str = "6.1") -> Path:
    """The demo guest's initramfs for :func:`kernel` of ``version``: it holds that kernel's modules."""
    return asset("demo-guest", f"initrd-{version}.gz")


def disk() -> Path:
    """A pristine disk for xvda, holding hello.txt. Copy it before a guest writes to it."""
    return asset("demo-guest", "xvda.img")


def boot_disk() -> Path:
    """As :func:`disk`, with kernel, ramdisk and GRUB's menu below /boot."""
    return asset("demo-guest", "boot.img")


def definition(
    image: Path,
    *,
    type: str = "pv",
    kernel: str = "6.1",
    shim: str = "4.17",
    vcpus: int = 1,
    memory: int | None = None,
    accel: str = "auto",
) -> dict[str, Any]:
    """The demo guest with ``image`` as its xvda: a guest definition of xenpvd's.

    ``kernel`` and ``shim`` are versions; a PVH guest has no shim. ``memory`` is in MiB, by default little
    more than the kernel needs.
    """
    made: dict[str, Any] = {
        "type": type,
        "accel": accel,
        "memory": memory or MEMORY[kernel],
        "vcpus": vcpus,
        "kernel": str(_kernel(kernel)),
        "ramdisk": str(ramdisk(kernel)),
        "cmdline": "console=hvc0",
    }
    if type == "pv":
        made["shim"] = {"path": str(_shim(shim))}
    return made | {"disk": [{"vdev": "xvda", "target": str(image)}]}


_kernel, _shim = kernel, shim  # definition's parameters have their names


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


def initramfs(version: str = "6.1") -> bytes:
    """Build the guest's initramfs for :func:`kernel` of ``version``, uncompressed."""
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
    for module in sorted(asset(packages.GUEST_KERNELS[version].name, "modules").glob("*.ko")):
        cpio.file(f"lib/{module.name}", module.read_bytes())
    cpio.file("init", (FILES / "init").read_bytes(), 0o755)
    cpio.file("etc/profile", (FILES / "profile").read_bytes())
    for tool_ in ("hotplug", "now"):
        cpio.file(f"sbin/{tool_}", (FILES / tool_).read_bytes(), 0o755)
    for verb in ("poweroff", "reboot", "halt"):
        cpio.file(f"sbin/{verb}", (FILES / "poweroff").read_bytes(), 0o755)
    return cpio.finish()


def build() -> None:
    """Build the demo guest's files in the cache, unless they are what would be built. Needs the venv."""
    with locked(cache() / "assets.lock"):
        _build()


def _build() -> None:
    from xenpvd.vmm import bzimage  # wants packages of the venv, and others import us without

    archives = {version: initramfs(version) for version in packages.GUEST_KERNELS}
    digest = hashlib.sha256((HELLO + GRUB_CFG + str(kernel())).encode())
    for content in archives.values():
        digest.update(content)
    stamp = asset("demo-guest", "version")
    if stamp.exists() and stamp.read_text().strip() == digest.hexdigest():
        return
    with step("build", "demo guest (ramdisks, disks)"), replacing(asset("demo-guest")) as folder:
        for version, content in archives.items():
            (folder / f"initrd-{version}.gz").write_bytes(gzip.compress(content, 6, mtime=0))
        files = {"hello.txt": HELLO.encode()}
        make_disk(folder / "xvda.img", DISK_SIZE, files)
        files["boot/vmlinuz"] = kernel().read_bytes()
        files["boot/vmlinux.gz"] = gzip.compress(bzimage.payload(kernel().read_bytes()), 1, mtime=0)
        files["boot/initrd.gz"] = (folder / "initrd-6.1.gz").read_bytes()
        files["boot/grub/grub.cfg"] = GRUB_CFG.encode()
        make_disk(folder / "boot.img", DISK_SIZE, files)
        (folder / "version").write_text(f"{digest.hexdigest()}\n")


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
            target.chmod(0o755)  # a program can be run
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


if __name__ == "__main__":
    try:
        build()
    except LabError as fault:
        sys.exit(f"setup: {fault}")
