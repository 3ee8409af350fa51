"""What can go wrong, by whose fault it is.

==================  =====================================  =======================================
fault               class                                  ends as
==================  =====================================  =======================================
the guest asked     :class:`XenError`, :class:`GrantError`  a number on the wire
for what can't be   and the protocols' own (BLKIF_RSP_*)
the guest broke     :class:`GuestFault`                    that device closes; the guest goes on
a protocol
the operator asked  :class:`XenpvdError` and below         a message: what failed: why. What to do.
wrongly, or the
host refused
we are wrong        anything else                          the guest is ``crashed``; RPC lives on
==================  =====================================  =======================================

``XenpvdError.reason`` is a stable upper-case word that programs may compare; ``data`` names the thing.
The RPC surface maps each class to its number in one place, ``rpc/errors.py``.
"""

from __future__ import annotations

import os
from typing import Any


class XenError(Exception):
    """A hypercall or a door to the outer Xen refuses; ``errno`` is positive, Xen's number (= Linux's)."""

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(f"{os.strerror(errno)}{': ' + why if why else ''}")
        self.errno = errno


class GrantError(Exception):
    """A grant cannot be mapped; ``status`` is the GNTST_* number of grant_table.h (negative)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class GuestFault(Exception):
    """The guest broke a protocol. The device it happened on is closed; nothing else stops."""


class XenpvdError(Exception):
    """A fault an operator can read and act on: ``what failed: why. What to do.``"""

    reason = "FAILED"

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.data = data


class BadConfig(XenpvdError):
    """A guest definition that cannot work. ``problems`` is a list of (location, message)."""

    reason = "VALIDATION"

    def __init__(self, message: str, problems: list[tuple[str, str]] | None = None) -> None:
        self.problems = problems or []
        super().__init__(message, errors=[{"loc": loc, "msg": msg} for loc, msg in self.problems])


class StateError(XenpvdError):
    """The verb does not fit the guest's state now."""

    reason = "GUEST_STATE"

    def __init__(self, message: str, state: str, allowed: list[str]) -> None:
        super().__init__(message, state=state, allowed=allowed)


class NotFound(XenpvdError):
    """There is no such thing: ``kind`` (drive, path, console) and ``name``."""

    reason = "NOT_FOUND"

    def __init__(self, message: str, kind: str, name: str) -> None:
        super().__init__(message, kind=kind, name=name)


class Exists(XenpvdError):
    """There is such a thing already, and it differs from the one asked for."""

    reason = "EXISTS"


class Busy(XenpvdError):
    """Somebody else holds it; ``by`` says who."""

    reason = "BUSY"


class TimedOut(XenpvdError):
    """What was waited for did not come in time; nothing was undone unless the message says so."""

    reason = "TIMEOUT"


class LimitReached(XenpvdError):
    """A bound of the daemon's own: connections, message size, requests in flight."""

    reason = "LIMIT"


class Unsupported(XenpvdError):
    """This host, shim or build cannot do it."""

    reason = "UNSUPPORTED"


class PermissionRefused(XenpvdError):
    """The peer's role is too small."""

    reason = "PERMISSION"


class ImageError(XenpvdError):
    """A disk image, kernel or shim file that cannot be used; ``path`` names it."""

    reason = "IMAGE"

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message, path=path)


class HostError(XenpvdError):
    """The host's kernel refused a call on a path or resource."""

    reason = "HOST_IO"

    def __init__(self, message: str, errno: int, path: str) -> None:
        super().__init__(message, errno=errno, path=path)


class KvmError(XenpvdError):
    """KVM refused an ioctl; the message carries the cure where one is known."""

    reason = "HOST_KVM"

    def __init__(self, message: str, ioctl: str, errno: int) -> None:
        super().__init__(message, ioctl=ioctl, errno=errno)


class XenstoreFault(XenpvdError):
    """xenstore refuses; ``error`` is its wire name (ENOENT, EACCES ...; xs_wire.h:xsd_errors)."""

    reason = "XENSTORE"

    def __init__(self, message: str, error: str, path: str) -> None:
        super().__init__(message, error=error, path=path)
