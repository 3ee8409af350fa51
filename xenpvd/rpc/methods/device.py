"""The guest's disks."""

from __future__ import annotations

from xenpvd.rpc import models, results
from xenpvd.rpc.registry import Call, method
from xenpvd.views import DriveAdded, DriveInfo


@method("drive.list", "viewer")
async def drive_list(call: Call, params: models.NoParams) -> list[DriveInfo]:
    """The disks, as both ends see them."""
    return call.service.drive_list()


@method("drive.add", "operator")
async def drive_add(call: Call, params: models.DriveAddParams) -> DriveAdded:
    """Attach a disk, also while the guest runs.

    The very same drive once more is no fault (``changed`` is false); another one of that name is EXISTS.
    """
    return await call.service.drive_add(params.disk(), params.wait, params.timeout)


@method("drive.remove", "operator")
async def drive_remove(call: Call, params: models.DriveRemoveParams) -> results.Removed:
    """Detach a disk; answers when the guest has let go of it."""
    removed = await call.service.drive_remove(params.vdev, params.force, params.missing_ok, params.timeout)
    return results.Removed(removed=removed)


@method("drive.resize", "operator")
async def drive_resize(call: Call, params: models.DriveResizeParams) -> DriveInfo:
    """Have the guest see a disk's new size: the one given, or what its image has become meanwhile.

    An image file is made as large as ``size`` says; a block device has the size that the host gives it.
    """
    return await call.service.drive_resize(params.vdev, params.size, params.shrink)


@method("drive.set_limits", "operator")
async def drive_set_limits(call: Call, params: models.DriveLimitsParams) -> DriveInfo:
    """Limit what a disk may use of its storage, from now on; what is left out is no limit."""
    return await call.service.drive_set_limits(params.vdev, params.limits())


@method("drive.flush", "operator")
async def drive_flush(call: Call, params: models.DriveParams) -> None:
    """Have everything that the guest has written to a disk on stable storage."""
    await call.service.drive_flush(params.vdev)


@method("drive.swap", "operator")
async def drive_swap(call: Call, params: models.DriveSwapParams) -> DriveInfo:
    """Put another image behind a disk while the guest goes on; it waits until what is under way is done.

    For an image that was copied elsewhere: the guest takes what is in it for what it has written itself. And
    for a cdrom: the guest sees the size of what lies in it.
    """
    return await call.service.drive_swap(params.vdev, params.target)
