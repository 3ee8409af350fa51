"""A xenstore tree with the two domains that tests speak of."""

from __future__ import annotations

from xenpvd.backends.xenstore.domain import Domains
from xenpvd.backends.xenstore.store import Store


class FakeStore(Store):
    """The real tree; domain 0 is ``own``, domain 1 is ``guest``."""

    def __init__(self) -> None:
        domains = Domains()
        super().__init__(domains)
        self.own, self.guest = domains.of(0), domains.of(1)
