"""The files of a dump: a tar.gz of what was looked at, and a core with the guest's memory.

Each is readable for the daemon's user only, never comes in another's place, and is removed again if it cannot
be whole.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import time
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import to_json

from xenpvd.errors import Exists, HostError, StateError
from xenpvd.jobs import Work
from xenpvd.vmm import core
from xenpvd.vmm.memory import GuestMemory

#: Bytes of a step: of what is pressed, and of memory
PIECE = 1 << 20
MEMORY_PIECE = 16 << 20
#: of memory that is left out as a hole if it is all zeros
BLOCK = 1 << 16
_ZEROS = bytes(BLOCK)


class Machine(Protocol):
    """A guest's, whose memory is to be written."""

    @property
    def over(self) -> bool: ...

    @property
    def paused(self) -> bool: ...

    @property
    def memory(self) -> GuestMemory: ...


@dataclass(frozen=True)
class Contents:
    """``parts`` are files by name; ``missing`` is why others are none. With ``machine`` its memory, and
    ``registers`` of its vCPUs, too."""

    parts: dict[str, bytes]
    missing: dict[str, str]
    machine: Machine | None
    registers: list[dict[str, int]]

    @property
    def size(self) -> int:
        """Bytes, before they are pressed."""
        regions = self.machine.memory.all_regions() if self.machine is not None else []
        return sum(map(len, self.parts.values())) + sum(region.size for region in regions)


def core_of(file: Path) -> Path:
    """Where the memory is written whose dump is ``file``."""
    name = file.name
    for ending in (".gz", ".tar", ".tgz"):
        name = name.removesuffix(ending)
    return file.with_name(f"{name}.core")


def write(file: Path, contents: Contents, own: Path) -> Work:
    """Bytes done, step by step; what was written. ``own`` is a folder that the daemon may write to, for the
    message if it may not here. Raises :class:`Exists`, :class:`HostError`, and :class:`StateError` if the
    guest ends before its memory is written."""
    told: dict[str, Any] = {"file": str(file), "core": None, "live": None, "missing": dict(contents.missing)}
    done = 0
    with contextlib.ExitStack() as files:
        bundle = files.enter_context(_New(file, own))
        if contents.machine is not None:
            memory = files.enter_context(_New(core_of(file), own))
            yield done
            done, live, whole = yield from _memory(memory, contents.machine, contents.registers)
            told |= {"core": str(memory.path), "core_size": memory.size(), "live": live}
            if not whole:
                told["missing"]["mappings"] = "they are too many; the core has the first ones of them"
        yield done
        yield from _press(bundle, file.name.partition(".")[0] or "dump", contents.parts, told, done)
        told["size"] = bundle.size()
    return told


def _press(
    bundle: _New, folder: str, parts: dict[str, bytes], told: dict[str, Any], done: int
) -> Generator[int, None, None]:
    about = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **told}
    press = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)  # with gzip's header
    for name, data in {"dump.json": to_json(about, indent=2), **parts}.items():
        head = tarfile.TarInfo(f"{folder}/{name}")
        head.size, head.mtime, head.mode = len(data), int(time.time()), 0o600
        bundle.write(press.compress(head.tobuf()))
        for at in range(0, len(data), PIECE):
            bundle.write(press.compress(data[at : at + PIECE]))
            yield done + min(at + PIECE, len(data))
        done += len(data)
        bundle.write(press.compress(bytes(-len(data) % tarfile.BLOCKSIZE)))
    bundle.write(press.compress(bytes(2 * tarfile.BLOCKSIZE)) + press.flush())


def _memory(
    file: _New, machine: Machine, registers: list[dict[str, int]]
) -> Generator[int, None, tuple[int, bool, bool]]:
    """The core; (bytes of memory, whether the guest ran meanwhile, whether all that it maps is told)."""
    regions = machine.memory.all_regions()
    done, live = 0, False
    halves: list[core.KernelHalf] = []

    def check() -> None:
        nonlocal live
        live = live or not machine.paused
        if machine.over:
            why = "the guest has ended, and its memory is gone. Dump it while it runs or is paused."
            raise StateError(f"cannot dump the memory: {why}", "stopped", ["running", "paused"])

    check()
    for root in core.roots(registers):
        halves.append(half := core.KernelHalf(machine.memory, root))
        for _ in half:
            yield done
            check()
    best = max(halves, key=lambda half: half.size, default=None)  # those of a process may lack the kernel
    runs = best.runs if best is not None else []
    begin, offsets, whole = core.head([(region.gpa, region.size) for region in regions], runs, registers)
    file.write(begin)
    for region, offset in zip(regions, offsets, strict=True):
        for at in range(0, region.size, MEMORY_PIECE):
            piece = region.view[at : at + MEMORY_PIECE]
            _sparse(file, piece, offset + at)
            check()  # behind it: what was read is the guest's, and no zeros of a memory that was given back
            done += len(piece)
            yield done
    return done, live, whole and (best is None or best.whole)


def _sparse(file: _New, view: memoryview, offset: int) -> None:
    for at in range(0, len(view), BLOCK):
        data = view[at : at + BLOCK].tobytes()  # once: the guest may change it
        if data != _ZEROS[: len(data)]:
            file.write(data, offset + at)
    file.reach(offset + len(view))


class _New:
    """A file that was not there before. It is removed again unless the block ends well."""

    def __init__(self, path: Path, own: Path) -> None:
        """Raises :class:`Exists`, :class:`HostError`."""
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileExistsError:
            why = f"cannot write {path}: it is there already, and is not overwritten. Choose another name."
            raise Exists(why, kind="file", name=str(path)) from None
        except OSError as fault:
            cure = f"The daemon writes it, with its own rights: choose a file in {own}, or none."
            raise self._refused(fault, cure) from None
        self._end = 0

    def write(self, data: bytes, at: int | None = None) -> None:
        """At its end, or at ``at``. Raises :class:`HostError`."""
        place, view = self._end if at is None else at, memoryview(data)
        try:
            while view:
                count = os.pwrite(self._fd, view, place)
                place, view = place + count, view[count:]
        except OSError as fault:
            raise self._refused(fault) from None
        self._end = max(self._end, place)

    def reach(self, size: int) -> None:
        """Be so large at least, if by a hole. Raises :class:`HostError`."""
        if self._end >= size:
            return
        try:
            os.ftruncate(self._fd, size)
        except OSError as fault:
            raise self._refused(fault) from None
        self._end = size

    def size(self) -> int:
        return self._end

    def __enter__(self) -> _New:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: object) -> None:
        whole = False
        try:
            if kind is None:
                os.fsync(self._fd)  # storage may say only now that it is full
                whole = True
        except OSError as late:
            raise self._refused(late) from None
        finally:
            os.close(self._fd)
            if not whole:
                with contextlib.suppress(OSError):
                    self.path.unlink()

    def _refused(
        self, fault: OSError, cure: str = "It was removed again; choose another place."
    ) -> HostError:
        why = f"cannot write {self.path}: {fault.strerror}. {cure}"
        return HostError(why, fault.errno or 0, str(self.path))
