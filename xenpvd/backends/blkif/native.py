"""The door to c/native.c: a plane that needs no GIL. It does what ``plane.Plane`` does, and is used so."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache

from xenpvd.abi.io_blkif import X86_32, Abi
from xenpvd.abi.io_ring import RSP_PROD
from xenpvd.abi.page import GrantMemory, SharedPage
from xenpvd.backends.blkif import build
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.plane import TROUBLE_PAUSE, cannot
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.vqueue import Link
from xenpvd.backends.ops import EvtchnPort
from xenpvd.backends.ring import BackRing
from xenpvd.counts import BUCKETS, flat
from xenpvd.errors import GuestFault, Unsupported

#: Seconds that a plane looks at its ring before it sleeps, as long as that pays off
SPIN = 50e-6

_STOPPED, _RING_BROKEN, _OUT_OF_MEMORY, _URING_BROKEN = range(4)
_BAD_GRANT, _IO = 11, 12
_REFUSED = {
    1: "operation {a} is not offered",
    2: "{a} segments",
    3: "a segment of sectors {a} to {b} of a page",
    4: "{b} sectors from {a} on, beyond the disk's end",
    5: "sector {a}, {b} of them: no multiple of its sector size",
    6: "a write or discard on a read-only disk",
    7: "a secure discard is not offered",
    8: "a discard of nothing",
    9: "a flush with {a} segments",
    10: "an indirect request of operation {a}",
}

_Notify = ctypes.CFUNCTYPE(None)
_Trouble = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)
_u32, _u64, _ptr, _i32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int32

_COUNTERS = (
    "reads", "read_bytes", "writes", "write_bytes", "flushes", "discards", "errors", "in_flight",
    "notifications", "notifications_suppressed", "wakeups",
)  # fmt: skip


class _Region(ctypes.Structure):
    _fields_ = (("gfn", _u64), ("pages", _u64), ("address", _ptr), ("gone", _ptr))


class _Stats(ctypes.Structure):
    _fields_ = (*((name, _u64) for name in (*_COUNTERS, "latency_ns")), ("latency", _u64 * BUCKETS))


class _Plane(ctypes.Structure):
    """struct plane of native.c."""

    _fields_ = (
        *((name, _u32) for name in ("n_regions", "n_pages", "x86_32", "is_block", "write_flags")),
        ("regions", _Region * 8),
        ("grant_frames", _ptr),
        ("grant_uses", _ptr),
        ("pages", _ptr * 16),
        *((name, _i32) for name in ("image_fd", "kick_fd", "irq_fd", "stop_fd")),
        ("sectors", _u64),
        *((name, _u32) for name in ("readonly", "sector_size", "max_indirect", "discard")),
        ("flush_fault", _ptr),
        ("notify", _Notify),
        ("trouble", _Trouble),
        ("trouble_pause", _u64),
        ("spin_max", _u64),
        *((name, _u32) for name in ("stopping", "uses_uring", "want_uring", "req_cons")),
        ("told_at", _u64),
        ("broken_at", _u64),
        ("vhost", _ptr),
        ("stats", _Stats),
    )


@cache
def library() -> ctypes.CDLL:
    """The compiled half. Raises :class:`Unsupported` with the reason."""
    path = build.library()
    try:
        lib = ctypes.CDLL(str(path))
    except OSError:
        raise Unsupported(
            "xen-block's fast data plane is not built. Install gcc and libc6-dev, then run: "
            "python -m xenpvd.backends.blkif.build",
            feature="native plane",
        ) from None
    lib.plane_size.restype = lib.vhost_size.restype = ctypes.c_size_t
    lib.plane_run.argtypes = (ctypes.POINTER(_Plane), _u32)
    lib.plane_run.restype = ctypes.c_int
    if (lib.plane_size(), lib.vhost_size()) != (ctypes.sizeof(_Plane), ctypes.sizeof(Link)):
        raise AssertionError("native.c and native.py do not fit")
    return lib


def spin_max() -> int:
    """Nanoseconds. Whoever is to fill the ring meanwhile needs another CPU."""
    return int(SPIN * 1e9) if len(os.sched_getaffinity(0)) > 1 else 0


class NativePlane:
    """As ``plane.Plane``, but for ``throttle``: what is limited needs no fast plane. ``memory`` is where the
    guest's RAM and grants are; the callbacks come from the plane's thread. Raises :class:`GuestFault` if the
    ring cannot be attached, :class:`Unsupported` if there is no compiled half."""

    def __init__(
        self,
        pages: Sequence[SharedPage],
        port: EvtchnPort,
        memory: GrantMemory,
        image: Image,
        *,
        abi: Abi,
        offer: Offer,
        on_trouble: Callable[[str], None],
        on_end: Callable[[BaseException | None], None],
        name: str = "blkif",
        uring: bool = True,
    ) -> None:
        self._lib = library()
        BackRing(pages, abi.slot_size)  # checks the indexes
        self._rsp_prod = pages[0].load32(RSP_PROD)
        self._image = image
        self._on_trouble = on_trouble
        self._on_end = on_end
        self._told = 0
        self._keep = (pages, port, memory, _Notify(port.notify), _Trouble(self._trouble))
        plane = self._plane = _Plane()
        plane.n_regions = len(memory.regions)
        for slot, region in zip(plane.regions, memory.regions, strict=False):
            slot.gfn, slot.pages, slot.address, slot.gone = region
        plane.grant_frames, plane.grant_uses = memory.grant_frames, memory.grant_uses
        plane.n_pages = len(pages)
        for n, page in enumerate(pages):
            plane.pages[n] = ctypes.addressof(ctypes.c_char.from_buffer(page.view))
        plane.x86_32 = abi is X86_32
        plane.is_block = image.is_block
        plane.write_flags = os.RWF_DSYNC if image.sync else 0
        plane.image_fd = image.fd
        plane.kick_fd = port.kick_fd
        plane.irq_fd = -1 if port.irq_fd is None else port.irq_fd
        plane.flush_fault = ctypes.addressof(image.flush_errno)
        plane.notify, plane.trouble = self._keep[3:]
        plane.trouble_pause = int(TROUBLE_PAUSE * 1e9)
        plane.spin_max = spin_max()
        plane.want_uring = plane.uses_uring = uring
        plane.vhost = image.serve_queue()
        self.offer = offer
        plane.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def offer(self) -> Offer:
        return self._offer

    @offer.setter
    def offer(self, offer: Offer) -> None:
        self._offer, plane = offer, self._plane
        plane.readonly, plane.sector_size = offer.readonly, offer.sector_size
        plane.max_indirect, plane.discard = offer.max_indirect, offer.discard
        plane.sectors = offer.sectors

    @property
    def engine(self) -> str:
        """What it does its I/O with; io_uring may be forbidden here (sysctl kernel.io_uring_disabled)."""
        if self._plane.vhost:
            return "native, vhost-user"
        return "native, io_uring" if self._plane.uses_uring else "native, preadv: no io_uring here"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._plane.stopping = 1
        if self._plane.stop_fd >= 0:
            os.eventfd_write(self._plane.stop_fd, 1)

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        if self._plane.stop_fd >= 0:
            fd, self._plane.stop_fd = self._plane.stop_fd, -1
            os.close(fd)
        self._image.close()

    def stats(self) -> dict[str, int]:
        stats = self._plane.stats
        told = {name: int(getattr(stats, name)) for name in _COUNTERS}
        return told | flat([*stats.latency], int(stats.latency_ns))

    # ---- below: in the plane's thread

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            code = self._lib.plane_run(ctypes.byref(self._plane), self._rsp_prod)
        except BaseException as fault:
            end = fault
        else:
            at = int(self._plane.broken_at)
            if code == _RING_BROKEN and not self._plane.stopping:
                end = GuestFault(f"req_prod {at:#x} cannot be true: req_cons {self._plane.req_cons:#x}")
            elif code == _OUT_OF_MEMORY:
                end = MemoryError("no memory for a ring's requests")
            elif code == _URING_BROKEN:
                end = OSError(at, os.strerror(at))
        self._image.close(unlock=not isinstance(end, OSError))  # what is under way may still be done
        self._on_end(end)

    def _trouble(self, kind: int, operation: int, a: int, b: int) -> None:
        if kind == _IO:
            what = cannot(operation, self._image.path, b, os.strerror(a))
        elif kind == _BAD_GRANT:
            what = f"cannot map the guest's page: gref {a} (GNTST {b})"
        else:
            what = "refused: " + _REFUSED.get(kind, "?").format(a=a % (1 << 64), b=b % (1 << 64))
        errors = int(self._plane.stats.errors)
        more, self._told = errors - self._told - 1, errors
        self._on_trouble(what + (f" ({more} more before it)" if more else ""))
