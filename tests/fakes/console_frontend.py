"""The guest's half of a console: what hvc_xen does with the two rings."""

from __future__ import annotations

from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.page import FakePage

IN, IN_SIZE, OUT, OUT_SIZE = 0, 1024, 1024, 2048
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 3072, 3076, 3080, 3084


class ConsoleFrontend:
    """``start`` is where all four indices begin, as if that many bytes had passed."""

    def __init__(self, start: int = 0) -> None:
        self.page = FakePage()
        self.port = FakeEvtchnPort()
        for index in (IN_CONS, IN_PROD, OUT_CONS, OUT_PROD):
            self.page.store32(index, start)

    def put(self, data: bytes) -> int:
        """As much as fits, without a kick; how much that was."""
        cons, prod = self.page.load32(OUT_CONS), self.page.load32(OUT_PROD)
        taken = min(len(data), OUT_SIZE - (prod - cons) % 2**32)
        for n, byte in enumerate(data[:taken]):
            self.page.write(OUT + (prod + n) % OUT_SIZE, bytes([byte]))
        self.page.store32(OUT_PROD, prod + taken)
        return taken

    def prints(self, data: bytes) -> int:
        taken = self.put(data)
        self.port.guest_kick()
        return taken

    def take(self) -> bytes:
        """All input that waits."""
        cons, prod = self.page.load32(IN_CONS), self.page.load32(IN_PROD)
        data = b"".join(self.page.read((cons + n) % IN_SIZE, 1) for n in range((prod - cons) % 2**32))
        self.page.store32(IN_CONS, prod)
        return data

    def reads(self) -> bytes:
        """Take, and tell the backend that there is room again."""
        data = self.take()
        self.port.guest_kick()
        return data
