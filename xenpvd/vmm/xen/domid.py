"""Whom a domid in a hypercall means: the caller, domain 0 (this process), or nobody."""

from __future__ import annotations

from xenpvd.abi.xen import DOMID_SELF, EPERM, ESRCH
from xenpvd.errors import XenError

DOM0 = 0


def check_self(domid: int, own: int) -> None:
    """Most operations are for the caller only; others raise as Xen does: EPERM, ESRCH if there is no such."""
    if domid not in (DOMID_SELF, own):
        raise XenError(EPERM if domid == DOM0 else ESRCH, f"domain {domid} is not the caller")
