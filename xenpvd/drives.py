"""The guest's disks over all its lives: which images are open, and adding and removing while it runs."""

from __future__ import annotations

import asyncio
import time

from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import DiskConfig
from xenpvd.domain import Domain
from xenpvd.errors import Exists, NotFound, TimedOut, XenpvdError
from xenpvd.views import DriveAdded


class Drives:
    """Images stay open over a reboot. Loop thread only."""

    def __init__(self) -> None:
        #: vdev: its definition and its image
        self.images: dict[str, tuple[DiskConfig, Image]] = {}

    async def open_all(self, disks: tuple[DiskConfig, ...]) -> None:
        """Raises :class:`ImageError`, :class:`BadConfig`; what is open by then, :meth:`close_all` closes."""
        for disk in disks:
            await self._open(disk)

    def close_all(self) -> None:
        for _, image in self.images.values():
            image.close()
        self.images.clear()

    async def add(self, domain: Domain, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded:
        """Hot-add ``disk``. With ``wait`` this returns once the guest uses it, or raises why it does not, and
        nothing of it is left. The very same disk again changes nothing.

        Raises :class:`Exists`, :class:`ImageError`, :class:`BadConfig`, :class:`TimedOut`.
        """
        begin = time.monotonic()
        there = self.images.get(disk.vdev)
        if there is not None and there[0] != disk:
            raise Exists(
                f"cannot add {disk.vdev}: there is one already ({there[0].target}). Remove it first.",
                kind="drive",
                name=disk.vdev,
            )
        if there is None:
            image = await self._open(disk)
            try:
                domain.add_drive(disk, image)
            except BaseException:
                del self.images[disk.vdev]
                image.close()
                raise
        drive = domain.drives[disk.vdev]
        if not wait:
            return DriveAdded(drive.info(), there is None, None)
        try:
            await drive.wait_connected(timeout)
        except XenpvdError as fault:
            if there is not None or domain.drives.get(disk.vdev) is not drive:
                raise
            end = drive.info().frontend_state
            await self.remove(domain, disk.vdev, force=True, missing_ok=True, timeout=timeout)
            if isinstance(fault, TimedOut):
                raise TimedOut(
                    f"the guest did not take up {disk.vdev} in {timeout:g} s (its end is {end}); the disk "
                    "was removed again. Is the guest booted, with a block front end? Try a longer timeout."
                ) from None
            raise
        return DriveAdded(drive.info(), there is None, round((time.monotonic() - begin) * 1000, 1))

    async def remove(
        self, domain: Domain | None, vdev: str, *, force: bool, missing_ok: bool, timeout: float
    ) -> bool:
        """Hot-remove; False if there was none and ``missing_ok``. Raises :class:`NotFound`, :class:`TimedOut`
        (the guest does not let go: the disk stays)."""
        if domain is None or vdev not in domain.drives:
            if missing_ok:
                return False
            raise NotFound(f"cannot remove {vdev}: there is no such drive. See drive.list.", "drive", vdev)
        await domain.drives[vdev].remove(force=force, timeout=timeout)
        domain.drives.pop(vdev, None)
        self.images.pop(vdev, None)
        return True

    async def _open(self, disk: DiskConfig) -> Image:
        self._check_free(disk.vdev)
        image = await asyncio.to_thread(Image.open, disk.target, readonly=disk.access == "ro")
        try:
            self._check_free(disk.vdev)  # again: another call may have been quicker
        except Exists:
            image.close()
            raise
        self.images[disk.vdev] = (disk, image)
        return image

    def _check_free(self, vdev: str) -> None:
        """Two names may mean one number: d0 is xvda."""
        number = devid(vdev)
        for other in self.images:
            if devid(other) == number:
                raise Exists(
                    f"cannot add {vdev}: its number {number} is {other}'s. Choose another.",
                    kind="drive",
                    name=other,
                )
