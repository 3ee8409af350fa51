"""The back end's half of ``struct xencons_interface`` (include/public/io/console.h), sans-IO.

Two byte rings in one page with free-running 32-bit indices. The guest owns in_cons and out_prod and may put
anything there: an index that claims more than the ring holds is not believed.
"""

from __future__ import annotations

from xenpvd.abi.io_console import (
    XENCONS_IN,
    XENCONS_IN_SIZE,
    XENCONS_OUT,
    XENCONS_OUT_SIZE,
    XENCONS_in_cons,
    XENCONS_in_prod,
    XENCONS_out_cons,
    XENCONS_out_prod,
)
from xenpvd.abi.page import SharedPage
from xenpvd.errors import GuestFault

_U32 = 0xFFFF_FFFF


class ConsoleRing:
    """Our own indices live here, not in the page: what we wrote there the guest can change."""

    def __init__(self, page: SharedPage) -> None:
        self._page = page
        self._out_cons = page.load32(XENCONS_out_cons)
        self._in_prod = page.load32(XENCONS_in_prod)

    def drain(self) -> tuple[bytes, bool]:
        """Take what the guest has printed; also whether the ring was full, so that the guest may wait for us.

        Raises :class:`GuestFault` if out_prod is further ahead than the ring is long.
        """
        prod = self._page.load32(XENCONS_out_prod)
        waiting = prod - self._out_cons & _U32
        if waiting > XENCONS_OUT_SIZE:
            raise GuestFault(f"console: out_prod {prod:#x} is {waiting} bytes ahead, the ring holds 2048")
        if not waiting:
            return b"", False
        at = self._out_cons % XENCONS_OUT_SIZE
        first = min(waiting, XENCONS_OUT_SIZE - at)
        data = self._page.read(XENCONS_OUT + at, first)
        if first < waiting:
            data += self._page.read(XENCONS_OUT, waiting - first)
        self._page.fence()  # the bytes are ours before the guest may write over them
        self._out_cons = prod
        self._page.store32(XENCONS_out_cons, prod)
        return data, waiting == XENCONS_OUT_SIZE

    def feed(self, data: bytes | bytearray) -> int:
        """Put as much of ``data`` as fits into the guest's input; the number of bytes taken.

        Raises :class:`GuestFault` if in_cons is not behind what we have put there.
        """
        cons = self._page.load32(XENCONS_in_cons)
        unread = self._in_prod - cons & _U32
        if unread > XENCONS_IN_SIZE:
            raise GuestFault(f"console: in_cons {cons:#x} is ahead of in_prod {self._in_prod:#x}")
        taken = min(len(data), XENCONS_IN_SIZE - unread)
        if taken:
            at = self._in_prod % XENCONS_IN_SIZE
            first = min(taken, XENCONS_IN_SIZE - at)
            self._page.write(XENCONS_IN + at, data[:first])
            if first < taken:
                self._page.write(XENCONS_IN, data[first:taken])
            self._page.fence()  # the bytes are there before the index says so
            self._in_prod = self._in_prod + taken & _U32
            self._page.store32(XENCONS_in_prod, self._in_prod)
        return taken
