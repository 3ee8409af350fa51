"""What would keep a guest from starting, all of it at once: the dry run behind ``guest.check``."""

from __future__ import annotations

import os
from collections.abc import Callable

from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig, XenpvdError
from xenpvd.vmm import boot, layout
from xenpvd.vmm.kvm import System
from xenpvd.vmm.machine import probe


def host_memory(config: GuestConfig) -> None:
    """Raise :class:`BadConfig` if the guest is larger than the host."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // layout.MIB
    if config.memory > host:
        raise BadConfig(
            f"cannot give the guest {config.memory} MiB: this host has {host}. Set memory lower.",
            [("memory", f"at most {host} on this host")],
        )


def load_image(config: GuestConfig) -> boot.BootImage:
    """Read and check the files to boot. Blocking. Raises :class:`ImageError`, :class:`BadConfig`."""
    path = boot.find_shim(config.shim.path)
    image = boot.BootImage(
        shim=boot.parse_shim(path, boot.read_file("shim", path)),
        # "xen" alone gives the console ring to the guest and the shim's log to us, apart
        shim_cmdline=f"pv-shim console=xen {config.shim.extra}".rstrip(),
        kernel=boot.read_file("kernel", config.kernel),
        ramdisk=None if config.ramdisk is None else boot.read_file("ramdisk", config.ramdisk),
        cmdline=config.cmdline,
    )
    boot.check_fits(image, config.memory * layout.MIB)
    return image


def problems(config: GuestConfig) -> list[tuple[str, str]]:
    """Every problem as (TOML path, message). Blocking; changes nothing."""
    found: list[tuple[str, str]] = []

    def attempt(where: str, act: Callable[[], object]) -> None:
        try:
            act()
        except XenpvdError as fault:
            found.append((where, str(fault)))

    def shim() -> None:
        path = boot.find_shim(config.shim.path)
        boot.parse_shim(path, boot.read_file("shim", path))

    def kvm() -> None:
        system = System()
        try:
            probe(system)
        finally:
            system.close()

    attempt("(host)", kvm)
    attempt("shim.path", shim)
    attempt("kernel", lambda: boot.read_file("kernel", config.kernel))
    if config.ramdisk is not None:
        ramdisk = config.ramdisk
        attempt("ramdisk", lambda: boot.read_file("ramdisk", ramdisk))
    attempt("memory", lambda: host_memory(config))
    if not found:
        attempt("memory", lambda: load_image(config))
    for n, disk in enumerate(config.disk):
        attempt(f"disk.{n}.vdev", lambda: devid(disk.vdev))  # noqa: B023 - called at once
        attempt(
            f"disk.{n}.target",
            lambda: Image.open(disk.target, readonly=disk.access == "ro").close(),  # noqa: B023
        )
    return found
