"""Descriptors that come along with a message (unix(7), SCM_RIGHTS). Whoever sends them may be hostile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from xenpvd.errors import BadConfig, HostError

#: What is kept of them: one is what a call can take, and the second shows that there were more.
RIGHTS_MAX = 2


class Rights:
    """What came with one message. All are closed with it, but for one that is taken. False if there are none.

    ``lost``: the kernel has dropped some, for want of room here or in the table of open files.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._lost = False

    def __bool__(self) -> bool:
        return bool(self._fds) or self._lost

    def add(self, fds: Iterable[int], lost: bool) -> None:
        for fd in fds:
            if len(self._fds) < RIGHTS_MAX:
                self._fds.append(fd)
            else:
                os.close(fd)
        self._lost |= lost

    def absorb(self, other: Rights) -> None:
        self.add(other._fds, other._lost)
        other._fds = []

    def take(self) -> int:
        """The one that came, which is the caller's now. Raises :class:`BadConfig`, :class:`HostError`."""
        if len(self._fds) == 1 and not self._lost:
            return self._fds.pop()
        if self._fds:
            raise BadConfig(
                "cannot take a descriptor: more than one came with this call. Send one with each call."
            )
        if self._lost:
            why = "the daemon has no room for more open files. Close some clients, or raise LimitNOFILE"
            raise HostError(f"cannot take a descriptor: {why}.", errno.EMFILE, "SCM_RIGHTS")
        raise BadConfig(
            "cannot take a descriptor: none came with this call. Send it along with the bytes of the call "
            "(SCM_RIGHTS) at rpc.sock; xenpvctl fd add does."
        )

    def close(self) -> None:
        """Idempotent."""
        while self._fds:
            os.close(self._fds.pop())
