"""The backend's half of ``struct xenstore_domain_interface``: two byte streams in one shared page.

Layout: io/xs_wire.h; rules: docs/misc/xenstore-ring.txt of Xen. Our two indexes live here; the page only
hears of them, so a guest that overwrites them there gains nothing.
"""

from __future__ import annotations

from xenpvd.abi import io_xs_wire as abi
from xenpvd.abi.page import SharedPage
from xenpvd.backends.xenstore.wire import ConnectionFault

FEATURES = (
    abi.XENSTORE_SERVER_FEATURE_RECONNECTION
    | abi.XENSTORE_SERVER_FEATURE_ERROR
    | abi.XENSTORE_SERVER_FEATURE_WATCHDEPTH
)
SIZE = abi.XENSTORE_RING_SIZE


class Ring:
    """Empties the ring and says what it can do. All reads raise :class:`ConnectionFault` for indexes that
    cannot be (XENSTORE_ERROR_RINGIDX)."""

    def __init__(self, page: SharedPage) -> None:
        self._page = page
        self.reset()

    def reset(self) -> None:
        """Both streams empty, no error, connected; CONNECTION last, as the guest waits for it."""
        self._req_cons = self._rsp_prod = 0
        for offset in (abi.REQ_CONS, abi.REQ_PROD, abi.RSP_CONS, abi.RSP_PROD):
            self._page.store32(offset, 0)
        self._page.store32(abi.SERVER_FEATURES, FEATURES)
        self.set_error(abi.XENSTORE_ERROR_NONE)
        self._page.fence()
        self._page.store32(abi.CONNECTION, abi.XENSTORE_CONNECTED)

    def set_error(self, error: int) -> None:
        """XENSTORE_ERROR_*: say why nothing moves any more."""
        self._page.store32(abi.ERROR, error)

    def reconnect_wanted(self) -> bool:
        return self._page.load32(abi.CONNECTION) == abi.XENSTORE_RECONNECT

    def consume(self) -> bytes:
        """Take what the guest has written so far, b"" if nothing.

        The guest kicks only if it saw our old req_cons, so call it again until it gives b"" before waiting
        for a kick: each call looks at req_prod behind a fence.
        """
        available = (self._page.load32(abi.REQ_PROD) - self._req_cons) & 0xFFFF_FFFF
        if available > SIZE:
            raise ConnectionFault(
                abi.XENSTORE_ERROR_RINGIDX, f"req_prod is {available} bytes ahead of req_cons"
            )
        if not available:
            return b""
        self._page.fence()
        start = self._req_cons % SIZE
        straight = min(available, SIZE - start)
        data = self._page.read(abi.REQ + start, straight) + self._page.read(abi.REQ, available - straight)
        self._page.fence()
        self._req_cons = (self._req_cons + available) & 0xFFFF_FFFF
        self._page.store32(abi.REQ_CONS, self._req_cons)
        self._page.fence()
        return data

    def produce(self, data: bytes | memoryview) -> int:
        """Write as much of ``data`` as there is room for; returns how many bytes that was.

        0 means full. As with :meth:`consume`: only after a 0 will the guest kick once it has read.
        """
        waiting = (self._rsp_prod - self._page.load32(abi.RSP_CONS)) & 0xFFFF_FFFF
        if waiting > SIZE:
            raise ConnectionFault(abi.XENSTORE_ERROR_RINGIDX, f"rsp_cons is {waiting} bytes behind rsp_prod")
        length = min(len(data), SIZE - waiting)
        if not length:
            return 0
        self._page.fence()
        start = self._rsp_prod % SIZE
        straight = min(length, SIZE - start)
        self._page.write(abi.RSP + start, data[:straight])
        self._page.write(abi.RSP, data[straight:length])
        self._page.fence()
        self._rsp_prod = (self._rsp_prod + length) & 0xFFFF_FFFF
        self._page.store32(abi.RSP_PROD, self._rsp_prod)
        self._page.fence()
        return length
