"""Every method of the API: importing this declares them all in METHODS, in the order of the document."""

from __future__ import annotations

from xenpvd.rpc.methods import daemon, guest, device, console, xen, xenstore, job  # isort: skip
from xenpvd.rpc.registry import METHODS

__all__ = ["METHODS", "console", "daemon", "device", "guest", "job", "xen", "xenstore"]
