"""The doors a backend needs to the outer Xen, named after libxen's: evtchn, gnttab, foreignmem, xenstore.

The consumer owns the door: backends say here what they need, the engine room (``vmm``) and the store fit it
by shape, and mypy checks the fit where ``guest.py`` hands them over. Tests hand over fakes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from xenpvd.abi.page import GrantMemory, SharedPage
from xenpvd.errors import GrantError as GrantError


class EvtchnPort(Protocol):
    """The backend's end of an interdomain event channel; the other end is the guest's ``port``."""

    @property
    def port(self) -> int:
        """The guest's port number."""

    @property
    def kick_fd(self) -> int:
        """A non-blocking eventfd, readable once the guest has sent; reading it takes all sends so far."""

    @property
    def irq_fd(self) -> int | None:
        """An eventfd that does what :meth:`notify` does; None where events go another way."""

    def notify(self) -> None:
        """Raise the guest's port. From any thread; never blocks; harmless once the port is closed."""

    def close(self) -> None:
        """Give the port up. Idempotent."""


class EvtchnOps(Protocol):
    def bind_interdomain(self, remote_port: int) -> EvtchnPort:
        """Bind to the port that the guest has allocated for domain 0.

        Raises ``XenError``: EINVAL for a port that is not unbound for domain 0; :class:`HostError` and
        :class:`KvmError` for what the host has no more of.
        """


class Grant(Protocol):
    """A page of the guest, mapped while it is granted to domain 0."""

    @property
    def page(self) -> SharedPage: ...

    def unmap(self) -> None:
        """Give it back (clears GTF_reading/GTF_writing). Idempotent; ``page`` must not be used after."""


class GnttabOps(Protocol):
    def map(self, gref: int, *, readonly: bool = False) -> Grant:
        """Map one grant of the guest. From any thread.

        Raises ``GrantError`` (``status`` is GNTST_*) for a bad reference, a page granted to somebody else,
        a read-only grant asked for writing, or a frame that is not the guest's RAM.
        """

    def memory(self) -> GrantMemory:
        """What is said there holds until the guest's end."""


class ForeignmemOps(Protocol):
    def page(self, gfn: int) -> SharedPage:
        """The guest's page ``gfn``, for the primary rings. Raises ``XenError`` EFAULT outside its RAM."""


class XenstoreWatch(Protocol):
    """Fires once at registration, then at each change at or below its path.

    ``async for path in watch`` yields the changed path; equal paths that wait to be read are merged.
    """

    def __aiter__(self) -> AsyncIterator[str]: ...

    def close(self) -> None: ...


class XenstoreTx(Protocol):
    """Reads and writes of domain 0; all raise ``XenstoreFault``. Values are str on the way in, bytes raw."""

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, value: str | bytes) -> None:
        """Write, creating missing parents as xenstored does."""

    def mkdir(self, path: str) -> None: ...

    def remove(self, path: str) -> None:
        """Remove the node and all below; ENOENT if its parent is missing, no error if only it is."""

    def directory(self, path: str) -> list[str]: ...

    def set_perms(self, path: str, perms: Sequence[str]) -> None:
        """Wire form: ``["n1", "r0"]``; the first names the owner and everybody else's rights."""


class XenstoreOps(XenstoreTx, Protocol):
    """Domain 0's connection to the store, in process. Synchronous; loop thread only."""

    def transaction(self) -> AbstractContextManager[XenstoreTx]:
        """``with store.transaction() as t:`` commits at the end, drops everything on an exception.

        It cannot conflict: nothing else runs in between as long as the block does not await.
        """

    def watch(self, path: str) -> XenstoreWatch: ...

    async def looked_at(self, path: str, timeout: float) -> bool:
        """Wait until a guest asks for ``path`` itself, counted from the call on: then it knows what is there
        now. False after ``timeout`` seconds, and at once if no guest is connected."""
