"""Files that the daemon was given open: by whoever started it, or over rpc.sock. A disk's target fd:NAME."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.opening import check_descriptor, is_writable
from xenpvd.backends.blkif.sharing import OpenFile
from xenpvd.config import Cache
from xenpvd.errors import Busy, Exists, ImageError, LimitReached, NotFound
from xenpvd.paths import BY_DESCRIPTOR
from xenpvd.tasks import in_thread
from xenpvd.views import DescriptorAdded, DescriptorInfo

#: As many as disks
DESCRIPTORS_MAX = 64


@dataclass(frozen=True, slots=True)
class _Held:
    fd: int
    #: which file or device it is
    identity: tuple[int, ...]
    info: DescriptorInfo
    file: OpenFile = field(default_factory=OpenFile)


class Descriptors:
    """They stay until they are removed, or the daemon ends: a guest's next life opens its disks anew.

    A file has one name only: two descriptors of it may be copies of each other, with one lock for both, and
    that would not be seen.
    """

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._opening = Counter[str]()  # images on them that are not there yet
        self._lock = threading.Lock()  # images are opened in threads: none may meet a number that was closed

    async def add(self, name: str, fd: int) -> DescriptorAdded:
        """Take ``fd`` over, whatever comes of it. The very same file once more changes nothing.

        Raises :class:`ImageError` for what no disk can be on, :class:`Exists`, :class:`LimitReached`.
        """
        try:
            return self._keep(await in_thread(partial(_look, name, fd)))
        except BaseException:
            os.close(fd)
            raise

    def inherit(self, name: str, fd: int) -> None:
        """Take over, as :meth:`add`, what the daemon was started with."""
        try:
            if name in self._held:
                why = f"cannot take descriptor {name}: there are two of that name. Rename one."
                raise Exists(why, name=name)
            self._keep(_look(name, fd))
        except BaseException:
            os.close(fd)
            raise

    def _keep(self, new: _Held) -> DescriptorAdded:
        name = new.info.name
        old = self._held.get(name)
        if old is not None and (old.identity, old.info.access) == (new.identity, new.info.access):
            os.close(new.fd)
            return DescriptorAdded(old.info, changed=False)
        if old is not None:
            raise Exists(
                f"cannot take descriptor {name}: there is another one of that name. Remove it (fd.remove), "
                "or choose another name.",
                name=name,
            )
        for other, held in self._held.items():
            if held.identity == new.identity:
                raise Exists(
                    f"cannot take descriptor {name}: that file is here already, as {other}. Use fd:{other}.",
                    name=other,
                )
        if len(self._held) >= DESCRIPTORS_MAX:
            why = f"cannot take descriptor {name}: {DESCRIPTORS_MAX} are here. Remove one (fd.remove)."
            raise LimitReached(why, limit=DESCRIPTORS_MAX)
        self._held[name] = new
        return DescriptorAdded(new.info, changed=True)

    def has(self, name: str) -> bool:
        return name in self._held

    async def listing(self) -> list[DescriptorInfo]:
        """As they are now: files grow, and go elsewhere."""
        there = tuple(self._held.values())
        return await in_thread(lambda: [self._now(held) for held in there])

    def _now(self, held: _Held) -> DescriptorInfo:
        """Blocking: its storage may hang. As it came, if it is gone by now, or there are no more files."""
        try:
            with self._lock:
                if self._held.get(held.info.name) is not held:
                    return held.info
                fd = os.dup(held.fd)
        except OSError:
            return held.info
        try:
            size = os.fstat(fd).st_size if held.info.kind == "file" else held.info.size
            return replace(held.info, size=size, path=_path(fd))
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Close it. Raises :class:`NotFound`, and :class:`Busy` while there is an image on it: the next one
        of that file would not know of the other's lock, which is the same."""
        if name not in self._held:
            why = f"cannot remove descriptor {name}: there is none of that name. See fd.list."
            raise NotFound(why, "descriptor", name)
        with self._lock:
            if self._opening[name] or self._held[name].file.in_use:
                why = "it is being opened for a disk, or its storage hangs. Try again."
                raise Busy(f"cannot remove descriptor {name}: {why}", by=BY_DESCRIPTOR + name)
            os.close(self._held.pop(name).fd)

    def close(self) -> None:
        """The daemon ends. Idempotent."""
        with self._lock:
            while self._held:
                os.close(self._held.popitem()[1].fd)

    def image(self, target: str, *, readonly: bool, cache: Cache = "writeback", lock: bool = True) -> Image:
        """What fd:NAME is, as :meth:`Image.shared`. Blocking; in any thread. Raises :class:`ImageError`."""
        name = target.removeprefix(BY_DESCRIPTOR)
        with self._lock:
            held = self._held.get(name)
            if held is None:
                why = f"cannot use image {target}: the daemon has no descriptor {name}"
                raise ImageError(f"{why}. Give it one (xenpvctl fd add, OpenFile=, --fd).", target)
            try:
                fd = os.dup(held.fd)
            except OSError as fault:
                why = f"cannot use image {target}: {fault.strerror}. Raise the limit (LimitNOFILE)."
                raise ImageError(why, target) from None
            self._opening[name] += 1
        try:
            return Image.shared(fd, held.file, target, readonly=readonly, cache=cache, lock=lock)
        finally:
            with self._lock:
                self._opening[name] -= 1


def _look(name: str, fd: int) -> _Held:
    """Blocking: its storage may hang. Raises :class:`ImageError`."""
    found = check_descriptor(fd, BY_DESCRIPTOR + name)
    block = stat.S_ISBLK(found.st_mode)
    identity = (found.st_rdev,) if block else (found.st_dev, found.st_ino)
    size = os.lseek(fd, 0, os.SEEK_END) if block else found.st_size
    access = "rw" if is_writable(fd) else "ro"
    info = DescriptorInfo(name, "block" if block else "file", access, size, path=_path(fd))
    return _Held(fd, identity, info)


def _path(fd: int) -> str | None:
    """What the kernel calls it: it may lie where this process sees nothing. None without a /proc."""
    try:
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return None
    return os.fsencode(path).decode(errors="replace")
