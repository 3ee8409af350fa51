"""Files and block devices that the daemon is given open."""

from __future__ import annotations

from xenpvd.errors import Unsupported
from xenpvd.rpc import models, results
from xenpvd.rpc.registry import Call, method
from xenpvd.views import DescriptorAdded, DescriptorInfo


@method("fd.add", "operator")
async def fd_add(call: Call, params: models.DescriptorParams) -> DescriptorAdded:
    """Give the daemon an open file or block device, which a disk's target names ``fd:NAME`` then.

    The descriptor comes along with the bytes of this call (SCM_RIGHTS), one with each, at rpc.sock only. It
    stays until it is removed or the daemon ends. The very same file once more is no fault (``changed`` is
    false); another one of that name is EXISTS, and so is a file that has another name here.
    """
    if call.rights is None:
        raise Unsupported(
            "cannot take a descriptor: none can come by HTTP or WebSocket. Send it at rpc.sock (xenpvctl fd "
            "add).",
            feature="descriptors",
            hint="rpc.sock",
        )
    return await call.service.fd_add(params.name, call.rights.take())


@method("fd.list", "viewer")
async def fd_list(call: Call, params: models.NoParams) -> list[DescriptorInfo]:
    """The descriptors that the daemon was given, at its start and since."""
    return await call.service.fd_list()


@method("fd.remove", "operator")
async def fd_remove(call: Call, params: models.DescriptorRemoveParams) -> results.Removed:
    """Close one; BUSY while a disk is on it."""
    return results.Removed(removed=call.service.fd_remove(params.name, params.missing_ok))
