"""The guest's disks over all its lives: which images are open, and adding and removing while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial

from pydantic import ValidationError

from xenpvd.backends.blkif.backend import BlockBackend
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import MAX_DISKS, DiskConfig, LimitsConfig, problems
from xenpvd.descriptors import Descriptors
from xenpvd.domain import Domain
from xenpvd.errors import BadConfig, Exists, ImageError, NotFound, StateError, TimedOut, XenpvdError
from xenpvd.paths import BY_DESCRIPTOR
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import DriveAdded, DriveInfo

log = logging.getLogger(__name__)

#: Seconds that is waited for who holds a closed image
END_TIMEOUT = 10.0


class Drives:
    """Owns the images: all are opened and closed here, and stay open over a reboot. Loop thread only.

    What a life's end overtakes: a remove is done before the next life begins, which does not have the disk;
    an added disk stays for it.
    """

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        #: vdev: its definition and its image
        self.images: dict[str, tuple[DiskConfig, Image]] = {}
        self._opening: dict[int, asyncio.Event] = {}  # numbers whose image is being opened for the guest
        self._given_up: dict[str, asyncio.Task[None]] = {}  # targets that are still being opened, for nobody
        self._tasks = Tasks(lambda name, fault: log.debug("%s: %s", name, fault))  # who waits is told

    async def open_all(self, disks: tuple[DiskConfig, ...]) -> None:
        """Raises :class:`ImageError`, :class:`BadConfig`; what is open by then, :meth:`close_all` closes."""
        for disk in disks:
            self._check_free(disk.vdev)
            self.images[disk.vdev] = (disk, await self._open(disk))

    async def close_all(self) -> None:
        images = [image for _, image in self.images.values()]
        for image in images:
            image.close()
        self.images.clear()
        await _ended(*images)

    def on(self, target: str) -> tuple[str, ...]:
        """The disks whose image that is."""
        return tuple(disk.vdev for disk, _ in self.images.values() if disk.target == target)

    async def add(self, domain: Domain, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded:
        """Hot-add ``disk``. With ``wait`` this returns once the guest uses it, or raises why it does not, and
        nothing of it is left. The same disk again changes nothing, also not its limits. If the guest ends
        meanwhile, this raises :class:`StateError`, and a disk that was offered stays for its next life.

        Raises :class:`Exists`, :class:`ImageError`, :class:`BadConfig`, :class:`TimedOut`.
        """
        begin = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                drive, changed = await self._add(domain, disk)
        except TimeoutError:
            raise TimedOut(
                f"cannot add {disk.vdev}: {disk.target} has not opened in {timeout:g} s. Its storage hangs."
            ) from None
        if not wait:
            return DriveAdded(drive.info(), changed, None)
        try:
            await drive.wait_connected(timeout)
        except XenpvdError as fault:
            if not changed or domain.drives.get(disk.vdev) is not drive:
                raise
            if domain.ending:
                raise StateError(
                    f"the guest ended before it took up {disk.vdev}; a reboot or reset keeps the disk for "
                    "its next life. See drive.list.",
                    "stopped",
                    ["running"],
                ) from None
            end = drive.info().frontend_state
            await self.remove(domain, disk.vdev, force=True, missing_ok=True, timeout=timeout)
            if isinstance(fault, TimedOut):
                raise TimedOut(
                    f"the guest did not take up {disk.vdev} in {timeout:g} s (its end is {end}); the disk "
                    "was removed again. Is the guest booted, with a block front end? Try a longer timeout."
                ) from None
            raise
        return DriveAdded(drive.info(), changed, round((time.monotonic() - begin) * 1000, 1))

    async def remove(
        self, domain: Domain | None, vdev: str, *, force: bool, missing_ok: bool, timeout: float
    ) -> bool:
        """Hot-remove; False if there was none and ``missing_ok``. Raises :class:`NotFound`, and
        :class:`TimedOut` (the guest does not let go) or :class:`StateError` (it ends): the disk stays."""
        try:
            drive = self._there(domain, vdev, "remove")
        except NotFound:
            if missing_ok:
                return False
            raise
        assert domain is not None
        vdev = drive.disk.vdev
        with domain.held(f"remove {vdev}"):  # the next life must not be offered an image about to be closed
            await drive.remove(force=force, timeout=timeout)
            if domain.drives.get(vdev) is drive:  # else another call has done it, and perhaps added a new one
                del domain.drives[vdev]
                del self.images[vdev]
                drive.image.close()
                await _ended(drive.image)
        return True

    async def resize(self, domain: Domain | None, vdev: str, size: int | None, shrink: bool) -> DriveInfo:
        """Make the image ``size`` bytes large, or take the size that it has become, and tell the guest.

        Raises :class:`NotFound`, :class:`StateError`, :class:`ImageError`, :class:`Busy` if it gets another
        image meanwhile, and :class:`BadConfig` for a smaller size that was not meant: what is beyond is lost.
        """
        drive = self._there(domain, vdev, "resize")
        try:
            await drive.resize(size, shrink=shrink)
        except ImageError:
            self._there(domain, vdev, "resize")  # it may have been removed meanwhile
            assert domain is not None
            domain.check_lives(f"resize {vdev}")
            raise
        return drive.info()

    async def set_limits(self, domain: Domain | None, vdev: str, limits: LimitsConfig) -> DriveInfo:
        """They hold for the guest's next lives, too. Raises :class:`NotFound`."""
        drive = self._there(domain, vdev, "limit")
        vdev = drive.disk.vdev
        drive.disk = drive.disk.model_copy(update={"limits": limits})
        self.images[vdev] = (drive.disk, drive.image)
        await drive.set_limits(limits.view())
        return drive.info()

    async def flush(self, domain: Domain | None, vdev: str) -> None:
        """Raises :class:`NotFound`, :class:`ImageError`."""
        await self._there(domain, vdev, "flush").flush()

    async def swap(self, domain: Domain | None, vdev: str, target: str) -> DriveInfo:
        """Put another image behind a disk, while the guest waits; "" empties a cdrom.

        The image that it has already changes nothing. Raises :class:`NotFound`, :class:`ImageError`,
        :class:`BadConfig`; the old one stays then.
        """
        drive = self._there(domain, vdev, "change")
        vdev = drive.disk.vdev
        assert domain is not None
        disk = _with_target(drive.disk, target)
        same = target == drive.disk.target  # of a path it is not said that the same file is there now
        if target.startswith("/"):
            same = await in_thread(partial(drive.image.is_at, target))
        if same:
            return drive.info()
        image = await self._open(disk)  # nobody waits for that, as its storage may hang
        unused = contextlib.ExitStack()
        unused.callback(image.close)
        with unused, domain.held(f"change {vdev}"):
            if domain.drives.get(vdev) is not drive:
                raise NotFound(f"cannot change {vdev}: it was removed meanwhile.", "drive", vdev)
            drive.check_fits(image)
            unused.pop_all()
            old = drive.image
            drive.disk = drive.disk.model_copy(update={"target": target})  # its limits may be others by now
            self.images[vdev] = (drive.disk, image)
            try:
                await drive.swap(image)
            finally:
                old.close()
                await _ended(old)
        return drive.info()

    def _there(self, domain: Domain | None, vdev: str, verb: str) -> BlockBackend:
        """By any of its names: d0 is xvda, too."""
        number = devid(vdev)
        for drive in domain.drives.values() if domain else ():
            if drive.devid == number:
                return drive
        raise NotFound(f"cannot {verb} {vdev}: there is no such drive. See drive.list.", "drive", vdev)

    async def _add(self, domain: Domain, disk: DiskConfig) -> tuple[BlockBackend, bool]:
        """The drive, and whether it is new. Adds of one number come one after the other."""
        number = devid(disk.vdev)
        while (other := self._opening.get(number)) is not None:
            await other.wait()
        domain.check_lives(f"add {disk.vdev}")
        there = self.images.get(disk.vdev)
        if there is not None and there[0] != disk.model_copy(update={"limits": there[0].limits}):
            raise Exists(
                f"cannot add {disk.vdev}: there is one already ({there[0].target}). Remove it first.",
                kind="drive",
                name=disk.vdev,
            )
        if there is not None and disk.vdev in domain.drives:
            return domain.drives[disk.vdev], False
        self._check_free(disk.vdev)
        if len(self.images) + len(self._opening) >= MAX_DISKS:
            why = f"the guest has {MAX_DISKS} disks, as many as it may"
            raise BadConfig(f"cannot add {disk.vdev}: {why}. Remove one first.")
        self._opening[number] = asyncio.Event()
        try:
            image = await self._open(disk)
            try:
                drive = domain.add_drive(disk, image)
            except BaseException:
                image.close()
                raise
            self.images[disk.vdev] = (disk, image)
            return drive, True
        finally:
            self._opening.pop(number).set()

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

    async def _open(self, disk: DiskConfig) -> Image:
        """Open and lock the image; storage that hangs holds up nobody else. One that is given up meanwhile
        goes on in its thread, and who opens that image next waits for it, or would find it locked."""
        if not disk.target:
            return Image.none()
        if disk.needs_engine:
            return await EngineImage.start(disk)
        while (before := self._given_up.get(disk.target)) is not None:
            await asyncio.wait({before})
        open_ = self._descriptors.image if disk.target.startswith(BY_DESCRIPTOR) else Image.open
        opening = self._tasks.spawn(
            in_thread(partial(open_, disk.target, readonly=disk.readonly, cache=disk.cache)),
            f"opening {disk.target}",
        )
        try:
            image: Image = await asyncio.shield(opening)
        except asyncio.CancelledError:
            other = self._given_up.get(disk.target)  # of readers there may be several
            dropping = self._drop(disk.target, opening, other)
            self._given_up[disk.target] = self._tasks.spawn(dropping, f"giving up {disk.target}")
            raise
        return image

    async def _drop(
        self, target: str, opening: asyncio.Task[Image], other: asyncio.Task[None] | None
    ) -> None:
        with contextlib.suppress(XenpvdError):  # whoever waited for it has gone
            (await opening).close()
        if other is not None:
            await asyncio.wait({other})
        if self._given_up[target] is asyncio.current_task():
            del self._given_up[target]


def _with_target(disk: DiskConfig, target: str) -> DiskConfig:
    """What its definition would be; :class:`BadConfig` if it could not be."""
    if not target and disk.device == "disk":
        raise BadConfig(f"cannot empty {disk.vdev}: it is a disk, no cdrom. Remove it.")
    try:
        return DiskConfig.model_validate(disk.model_dump() | {"target": target})
    except ValidationError as fault:
        found = problems(fault)
        why = "; ".join(f"{key}: {what}" for key, what in found)
        cure = "Remove the disk, and add it as it shall be."
        raise BadConfig(f"cannot put {target} behind {disk.vdev}: {why}. {cure}", found) from None


async def _ended(*images: Image) -> None:
    """So that they can be opened again at once; storage that hangs holds up nobody for long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_TIMEOUT):
            for image in images:
                await image.ended()
