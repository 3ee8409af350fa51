"""Every method of the API: importing this declares them all in METHODS, in the order of the document."""

from __future__ import annotations

from xenpvd.rpc.methods import daemon, guest, device, descriptor, console, xen, xenstore, job  # isort: skip
from xenpvd.rpc.registry import METHODS

__all__ = ["METHODS", "console", "daemon", "descriptor", "device", "guest", "job", "xen", "xenstore"]
