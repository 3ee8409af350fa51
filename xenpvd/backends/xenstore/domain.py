"""A domain as the store knows it: whose rights it has, how much it may take, and what it has taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from errno import ENOMEM

from xenpvd.backends.xenstore.quota import DOM0, NO_LIMIT, Quota, field_of
from xenpvd.errors import XenError

#: Seconds that a domain waits at most for another's transaction
REST_MAX = 0.4


@dataclass(slots=True, eq=False)
class Domain:
    """One per domid, shared by all its connections. Each number is kept by who hands out what it counts."""

    domid: int
    quota: Quota
    #: whose rights it has: its own, and its target's if it acts for another domain
    who: tuple[int, ...] = field(init=False)
    #: nodes that it owns, in the whole tree
    nodes: int = 0
    watches: int = 0
    #: that are open
    transactions: int = 0
    #: replies that it has not read
    outstanding: int = 0
    #: bytes of its nodes and watches, of the copies in its transactions, and of what waits to be read by it
    memory: int = 0
    #: by ``State.clock``: until when no request of it is taken, and until when that may not happen again
    rest_until: float = 0.0
    spared_until: float = 0.0

    def __post_init__(self) -> None:
        self.who = (self.domid,)

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    def rest(self, now: float, seconds: float) -> None:
        """Its change made a transaction of another domain fail, which had taken ``seconds``: let that one go
        first now. At most half of the time, so that nobody can be shut out by transactions that fail."""
        if not self.privileged and now >= self.spared_until:
            seconds = min(2 * seconds, REST_MAX)
            self.rest_until, self.spared_until = now + seconds, now + 2 * seconds

    def resting(self, now: float) -> float | None:
        """Seconds for which no request of it is to be taken; None: it may go on."""
        return self.rest_until - now if now < self.rest_until else None

    def check_memory(self, more: int, less: int = 0) -> None:
        """Can it have ``more``, once it has given back ``less``? Raises ``XenError`` ENOMEM."""
        if more > 0 and self.memory - less + more > self.quota.memory:
            raise XenError(ENOMEM, f"more than {self.quota.memory} bytes")


class Domains:
    """All domains and their quotas.

    A domain's quota is the global one until it gets one of its own, and keeps that when it is rebooted.
    0 means no limit. Everything raises ``XenError`` EINVAL for a name that is none.
    """

    def __init__(self) -> None:
        self._common = Quota()
        self._domains = {0: Domain(0, DOM0)}
        self._own: set[tuple[int, str]] = set()

    def of(self, domid: int) -> Domain:
        """It is made when it is first asked for: nodes may be owned by a domain that does not exist."""
        domain = self._domains.get(domid)
        if domain is None:
            domain = self._domains[domid] = Domain(domid, replace(self._common))
        return domain

    def __iter__(self) -> Iterator[Domain]:
        return iter(self._domains.values())

    def get_quota(self, name: str, domid: int | None = None) -> int:
        """The global one without ``domid``."""
        quota = self._common if domid is None else self.of(domid).quota
        value: int = getattr(quota, field_of(name))
        return 0 if value == NO_LIMIT else value

    def set_quota(self, name: str, value: int, domid: int | None = None) -> None:
        attribute, value = field_of(name), value or NO_LIMIT
        if domid is not None:
            self._own.add((domid, attribute))
            setattr(self.of(domid).quota, attribute, value)
            return
        setattr(self._common, attribute, value)
        for domain in self._domains.values():
            if not domain.privileged and (domain.domid, attribute) not in self._own:
                setattr(domain.quota, attribute, value)

    def set_target(self, domid: int, target: int) -> None:
        """Give a domain the rights of ``target`` as well, instead of those of any target before."""
        self.of(domid).who = (domid, target)

    def released(self, domid: int) -> None:
        """Nobody has the rights of a domain that is gone, and it has nobody's; nor does it rest."""
        for domain in self._domains.values():
            if domid in domain.who:
                domain.who = (domain.domid,)
        gone = self.of(domid)
        gone.rest_until = gone.spared_until = 0.0
