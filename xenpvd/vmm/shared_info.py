"""The page of events and time that a guest shares with Xen, as we look at it and change it.

Offsets are those of include/public/xen.h: struct shared_info, vcpu_info and vcpu_time_info, in the layouts
for 64-bit and for 32-bit guests. Bits are changed by atomics only: the guest's CPUs do the same meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.abi.xen import EINVAL, VCPU_INFO_SIZE, XEN_LEGACY_MAX_VCPUS
from xenpvd.errors import XenError
from xenpvd.vmm import atomic
from xenpvd.vmm.memory import GuestMemory

_PENDING = 0x800  # in both layouts; u64 or u32 words make no difference to bit numbers on x86
_MASK = {True: 0xA00, False: 0x880}
_WALLCLOCK = {True: 0xC00, False: 0x900}  # version, seconds, nanoseconds: u32 each
_SECONDS_HIGH = {True: 0xC0C, False: 0x924}
#: how many ports there are, by long mode
CHANNELS = {True: 4096, False: 1024}

#: vcpu_info.time, where KVM's pvclock belongs
VCPU_INFO_TIME = 32
_NS = 10**9


class SharedInfo:
    """shared_info and every vCPU's vcpu_info, wherever the guest has put them. ``longmode`` is the layout.

    Its owner holds a lock around each call. Until the guest has given the page nothing is pending or masked.
    """

    def __init__(self, memory: GuestMemory, vcpus: int) -> None:
        self.longmode = True
        self._memory = memory
        self._page: int | None = None  # in this process, as all addresses here
        self._infos: list[int | None] = [None] * vcpus
        self._own: set[int] = set()  # vCPUs whose vcpu_info does not lie in the page

    @property
    def placed(self) -> bool:
        return self._page is not None

    def place(
        self, gfn: int, switch: Callable[[], None] = lambda: None
    ) -> tuple[list[tuple[int, int]], set[int]]:
        """The page lies at ``gfn`` from now on: empty, or as it was where it lay before. ``switch`` tells who
        else writes to it; if that raises, nothing has happened.

        Returns the (vCPU, gpa) whose vcpu_info has moved along, and the ports that somebody made pending in
        the old page when it had been copied. Raises ``XenError``.
        """
        gpa = gfn << PAGE_SHIFT
        page, old = self._memory.address(gpa, PAGE_SIZE), self._page
        content = bytes(PAGE_SIZE) if old is None else ctypes.string_at(old, PAGE_SIZE)
        if page != old:
            self._memory.write(gpa, content)
        switch()
        late = set[int]()
        if old is not None and page != old:
            size = CHANNELS[self.longmode] // 8
            late = _ports(ctypes.string_at(old + _PENDING, size)) - _ports(content[_PENDING:][:size])
        self._page = page
        moved = []
        for vcpu in range(min(len(self._infos), XEN_LEGACY_MAX_VCPUS)):
            if vcpu not in self._own:
                self._infos[vcpu] = page + vcpu * VCPU_INFO_SIZE
                moved.append((vcpu, gpa + vcpu * VCPU_INFO_SIZE))
        return moved, late

    def place_vcpu_info(self, vcpu: int, gpa: int) -> bool:
        """The vCPU's lies there from now on; events marked in the old one are marked in it. True if there are
        such: the vCPU has to be told again. ``gpa`` is a multiple of 8. Raises ``XenError``."""
        old, self._infos[vcpu] = self._infos[vcpu], self._memory.address(gpa, VCPU_INFO_SIZE)
        self._own.add(vcpu)
        selected = 0 if old is None else ctypes.c_uint64.from_address(old + 8 * self.longmode).value
        words = selected if self.longmode else selected >> 32
        for word in range(words.bit_length()):
            if words >> word & 1:
                self.select(vcpu, word * (64 if self.longmode else 32))
        return words != 0

    # -- bits

    def pending(self, port: int) -> bool:
        return self._test(_PENDING, port)

    def masked(self, port: int) -> bool:
        return self._test(_MASK[self.longmode], port)

    def set_pending(self, port: int) -> bool:
        """True if it was before."""
        return atomic.set_bit64(*self._bit(_PENDING, port))

    def clear_pending(self, port: int) -> None:
        if self._page is not None:
            atomic.clear_bit64(*self._bit(_PENDING, port))

    def check(self, port: int) -> None:
        """Raise ``XenError`` EINVAL if the layout has no room for the port."""
        if not 0 < port < CHANNELS[self.longmode]:
            raise XenError(EINVAL, f"a 32-bit guest has no port {port}")

    def unmask(self, port: int) -> None:
        if self._page is not None:
            atomic.clear_bit64(*self._bit(_MASK[self.longmode], port))

    def select(self, vcpu: int, port: int) -> bool:
        """Mark the port's word in the vCPU's vcpu_info, which asks for an upcall; False if there is none."""
        info = self._infos[vcpu]
        if info is None:
            return False
        # pending_sel is a u64 at 8 or a u32 at 4; the latter as a part of the aligned u64 at 0
        if self.longmode:
            atomic.set_bit64(info + 8, port // 64)
        else:
            atomic.set_bit64(info, 32 + port // 32)
        ctypes.c_uint8.from_address(info).value = 1  # evtchn_upcall_pending
        return True

    def upcall_pending(self, vcpu: int) -> bool:
        info = self._infos[vcpu]
        return info is not None and ctypes.c_uint8.from_address(info).value != 0

    def _bit(self, bitmap: int, port: int) -> tuple[int, int]:
        assert self._page is not None
        return self._page + bitmap + port // 64 * 8, port % 64

    def _test(self, bitmap: int, port: int) -> bool:
        return self._page is not None and atomic.test_bit64(*self._bit(bitmap, port))

    # -- time

    def write_wallclock(self, epoch: int) -> None:
        """``epoch``: ns of the Unix epoch when the guest's clock was 0. The version is odd meanwhile."""
        if self._page is None:
            return
        seconds, nanoseconds = divmod(epoch, _NS)
        at = self._page + _WALLCLOCK[self.longmode]
        version, low, rest = (ctypes.c_uint32.from_address(at + 4 * n) for n in range(3))
        high = ctypes.c_uint32.from_address(self._page + _SECONDS_HIGH[self.longmode])
        version.value = version.value + 1 | 1
        atomic.fence()
        low.value, rest.value, high.value = seconds & 0xFFFF_FFFF, nanoseconds, seconds >> 32
        atomic.fence()
        version.value += 1


def _ports(bitmap: bytes) -> set[int]:
    bits = int.from_bytes(bitmap, "little")
    return {port for port in range(bits.bit_length()) if bits >> port & 1}
