"""The files that a guest boots from, and what would keep it from starting: the dry run of ``guest.check``."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from xenpvd.access import Access
from xenpvd.backends.blkif.engine_image import close, examine
from xenpvd.backends.blkif.fit import check_fits
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import DiskConfig, GuestConfig
from xenpvd.descriptors import Descriptors
from xenpvd.errors import BadConfig, ImageError, XenpvdError
from xenpvd.paths import BY_DESCRIPTOR
from xenpvd.vmm import boot, kernel, layout
from xenpvd.vmm.accel import probe
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.elf import BadImage
from xenpvd.vmm.kernel import PvhImage


def host_memory(config: GuestConfig) -> None:
    """Raise :class:`BadConfig` if the guest is larger than the host."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // layout.MIB
    if config.memory > host:
        raise BadConfig(
            f"cannot give the guest {config.memory} MiB: this host has {host}. Set memory lower.",
            [("memory", f"at most {host} on this host")],
        )


def load_image(config: GuestConfig) -> BootImage:
    """Read and check the files to boot. Blocking. Raises :class:`ImageError`, :class:`BadConfig`."""
    ramdisk = _read_ramdisk(config)
    modules = () if ramdisk is None else ((ramdisk, ""),)
    if config.type == "pvh":
        image = BootImage(_pvh_kernel(config), config.cmdline, modules, shim=False)
    else:
        # "xen" alone gives the console ring to the guest and the shim's log to us, apart
        cmdline = f"pv-shim console=xen {config.shim.extra}".rstrip()
        pv_kernel = boot.read_file("kernel", _kernel_path(config))  # as it is: the shim unpacks it
        image = BootImage(_shim(config), cmdline, ((pv_kernel, config.cmdline), *modules), shim=True)
    boot.check_fits(image, config.memory * layout.MIB)
    return image


def problems(config: GuestConfig, descriptors: Descriptors | None = None) -> list[tuple[str, str]]:
    """Every problem as (TOML path, message). Blocking; changes nothing.

    What disks' ``descriptors`` are only their daemon knows; without, they are not looked at.
    """
    found: list[tuple[str, str]] = []

    def attempt(where: str, act: Callable[[], object]) -> None:
        try:
            act()
        except XenpvdError as fault:
            found.append((where, str(fault)))

    def whole() -> None:
        image = load_image(config)
        attempt("accel", lambda: probe(config.accel, image))

    attempt("(host)", lambda: probe(config.accel))
    if config.type == "pvh":
        attempt("kernel", lambda: _pvh_kernel(config))
    else:
        attempt("shim.path", lambda: _shim(config))
        attempt("kernel", lambda: _look_into_pv_kernel(config))
    attempt("ramdisk", lambda: _read_ramdisk(config))
    attempt("memory", lambda: host_memory(config))
    try:
        Access(config.access)
    except BadConfig as fault:
        found += fault.problems
    if not found:
        attempt("memory", whole)
    taken: dict[int, str] = {}
    users: dict[object, DiskConfig] = {}
    for n, disk in enumerate(config.disk):
        attempt(f"disk.{n}.vdev", lambda: _number(disk.vdev, taken))  # noqa: B023 - called at once
        attempt(f"disk.{n}.target", lambda: _shares(disk, users))  # noqa: B023
        try:
            _look_at(disk, descriptors)
        except BadConfig as fault:
            found.append((f"disk.{n}.sector_size", str(fault)))
        except XenpvdError as fault:
            found.append((f"disk.{n}.target", str(fault)))
    return found


def _number(vdev: str, taken: dict[int, str]) -> None:
    """Two names may mean one: d0 is xvda. Raises :class:`BadConfig`."""
    other = taken.setdefault(number := devid(vdev), vdev)
    if other != vdev:
        raise BadConfig(f"cannot use {vdev}: its number {number} is {other}'s. Choose another.")


def _shares(disk: DiskConfig, users: dict[object, DiskConfig]) -> None:
    """Disks may have an image in common if all of them are ro. Raises :class:`ImageError`."""
    image: object = disk.target
    if disk.target.startswith("/"):
        with contextlib.suppress(OSError):  # which is told by who opens it
            found = os.stat(disk.target)  # noqa: PTH116
            image = found.st_rdev if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)
    elif not disk.target.startswith(BY_DESCRIPTOR):
        return  # a server knows what it allows; an empty tray has none
    other = users.setdefault(image, disk)
    if other is not disk and not (other.readonly and disk.readonly):
        what = "Remove one of them, or let both have access ro."
        raise ImageError(f"cannot use image {disk.target}: {other.vdev} uses it. {what}", disk.target)


def _look_at(disk: DiskConfig, descriptors: Descriptors | None) -> None:
    """Raises :class:`ImageError`, and :class:`BadConfig` for an image that is none for this disk."""
    if disk.needs_engine:
        return close(examine(disk))
    if disk.target.startswith("/"):
        image = Image.open(disk.target, readonly=disk.readonly, cache=disk.cache, lock=False)
    elif descriptors is not None and disk.target:
        image = descriptors.image(disk.target, readonly=disk.readonly, cache=disk.cache, lock=False)
    else:
        return
    try:
        check_fits(disk, image)
    finally:
        image.close()


def _shim(config: GuestConfig) -> PvhImage:
    path = boot.find_shim(config.shim.path)
    try:
        return kernel.parse_pvh(boot.read_file("shim", path))
    except BadImage as fault:
        raise _unusable("shim", path, fault, "Give a xen-shim from Xen's utilities.") from None


def _pvh_kernel(config: GuestConfig) -> PvhImage:
    path = _kernel_path(config)
    try:
        return kernel.parse_pvh(boot.read_file("kernel", path))
    except BadImage as fault:
        cure = 'Give one with a PVH entry (Linux: CONFIG_PVH), or use type = "pv".'
        raise _unusable("kernel", path, fault, cure) from None


def _look_into_pv_kernel(config: GuestConfig) -> None:
    """Unpacking takes a moment: a start leaves it to the shim, which would say so in its log, and crash."""
    path = _kernel_path(config)
    try:
        kernel.check_pv(boot.read_file("kernel", path))
    except BadImage as fault:
        cure = 'Give a kernel for Xen PV (Linux: CONFIG_XEN_PV), or use type = "pvh".'
        raise _unusable("kernel", path, fault, cure) from None


def _unusable(what: str, path: str, fault: BadImage, cure: str) -> ImageError:
    return ImageError(f"cannot use the {what} {path}: {fault}. {cure}", path)


def _kernel_path(config: GuestConfig) -> str:
    return boot.find_grub(config.type) if config.kernel == "pvgrub" else config.kernel


def _read_ramdisk(config: GuestConfig) -> bytes | None:
    if config.ramdisk is None:
        return None
    if config.kernel == "pvgrub":
        raise BadConfig(
            'cannot use a ramdisk with kernel = "pvgrub": the disk\'s GRUB menu names one. Remove ramdisk.',
            [("ramdisk", "not with pvgrub")],
        )
    return boot.read_file("ramdisk", config.ramdisk)
