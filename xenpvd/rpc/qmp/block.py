"""QMP's commands about disks: block nodes are images by name, ``xen-disk`` devices are the guest's drives."""

from __future__ import annotations

import asyncio
import os
import stat
from functools import partial
from typing import Any

from pydantic import ValidationError

from xenpvd import config
from xenpvd.config import DIRECT, DiskConfig, LimitsConfig
from xenpvd.errors import TimedOut
from xenpvd.paths import BY_DESCRIPTOR
from xenpvd.rpc.models import NoParams
from xenpvd.rpc.qmp.monitor import Monitor
from xenpvd.rpc.qmp.names import Device, Node
from xenpvd.rpc.qmp.params import (
    BlockdevAddParams,
    DeviceAddParams,
    DeviceDelParams,
    DiskParams,
    FileParams,
    NodeParams,
    NodesParams,
    ResizeParams,
    ThrottleParams,
)
from xenpvd.rpc.qmp.protocol import Refused
from xenpvd.rpc.qmp.registry import command
from xenpvd.tasks import in_thread
from xenpvd.views import DriveInfo

#: Seconds that an image has to open, and a guest to let go of a disk.
OPEN_TIME = 30.0
UNPLUG_TIME = 60.0


# ---- nodes


@command("blockdev-add")
async def blockdev_add(monitor: Monitor, params: BlockdevAddParams) -> None:
    """The image is looked at now; it is opened, and locked, when it becomes a disk."""
    nodes = await _nodes(monitor, params, params.node_name)
    try:
        DiskConfig(vdev="xvda", **_image(nodes[-1]))
    except ValidationError as fault:
        why = "; ".join(f"{loc}: {msg}" for loc, msg in config.problems(fault))
        raise Refused(f"cannot add block node {params.node_name}: {why}.") from None
    monitor.names.add(nodes)


async def _nodes(monitor: Monitor, params: FileParams, name: str, parent: str | None = None) -> list[Node]:
    """That of ``params``, and what is defined in it, which comes first."""
    inner: list[Node] = []
    if params.file is None:
        where, size = await _storage(monitor, params, name)
        flags = (params.readonly, params.unmap, params.cache.direct)
        return [Node(name, params.driver, "raw", where, size, *flags, None, parent)]
    if isinstance(params.file, str):
        child = monitor.names.node(params.file)
        monitor.names.check_unused(child.name)
    else:
        inner = await _nodes(monitor, params.file, params.file.node_name or f"#{name}.file", name)
        child = inner[-1]
    form = child.format if params.driver == "raw" else params.driver
    if child.format not in ("raw", form):
        raise Refused(f"cannot add block node {name}: {child.name} is {child.format}. Give its file.")
    flags = (
        params.readonly or child.readonly,
        params.unmap and child.discard,
        params.cache.direct or child.direct,
    )
    return [*inner, Node(name, params.driver, form, child.filename, child.size, *flags, child.name, parent)]


async def _storage(monitor: Monitor, params: FileParams, name: str) -> tuple[str, int]:
    """What a disk's target calls it, and how large it is; an NBD server is not asked for that (0). Raises
    :class:`Refused`."""
    if params.server is not None:
        return params.server.url(params.export or ""), 0
    filename = params.filename
    assert filename is not None
    try:
        async with asyncio.timeout(OPEN_TIME):
            if not filename.startswith(BY_DESCRIPTOR):
                return filename, await in_thread(partial(_size_now, filename))
            for held in await monitor.service.fd_list():
                if BY_DESCRIPTOR + held.name == filename:
                    return filename, held.size
    except OSError as fault:
        why = fault.strerror or "it has not opened in time"  # TimeoutError has none
        raise Refused(f"cannot add block node {name}: {filename}: {why}. Check the path.") from None
    why = f"the daemon has no descriptor {filename.removeprefix(BY_DESCRIPTOR)}"
    raise Refused(f"cannot add block node {name}: {why}. By rpc.sock, fd.add gives it one (xenpvctl fd add).")


def _size_now(filename: str) -> int:
    fd = os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(mode := os.fstat(fd).st_mode) and not stat.S_ISBLK(mode):
            raise OSError(0, "it is no regular file and no block device")
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


@command("blockdev-del")
async def blockdev_del(monitor: Monitor, params: NodeParams) -> None:
    monitor.names.remove(params.node_name)


@command("query-named-block-nodes")
async def query_named_block_nodes(monitor: Monitor, params: NodesParams) -> list[dict[str, Any]]:
    names = monitor.names
    drives = {names.of(drive.vdev).node_name: drive for drive in monitor.service.drive_list() if drive.target}
    told = [
        _inserted(drives[node.name], node.name)
        if node.name in drives
        else _info(node.name, node.driver, node.filename, node.readonly, node.size, node.direct)
        for node in names.nodes.values()
    ]
    return told + [_inserted(drive, name) for name, drive in drives.items() if name not in names.nodes]


# ---- devices


@command("device_add")
async def device_add(monitor: Monitor, params: DeviceAddParams) -> None:
    """The reply comes when the disk is offered; the guest takes it up a moment later."""
    names = monitor.names
    node = names.node(params.drive) if params.drive is not None else None
    device = Device(params.id or params.vdev, params.vdev, params.drive)
    disk = DiskConfig(
        vdev=params.vdev,
        device="cdrom" if params.driver == "xen-cdrom" else "disk",
        sector_size=params.logical_block_size,
        **(_image(node) if node else {}),
    )
    names.claim(device, monitor.service.drive_list())
    try:
        await monitor.service.drive_add(disk, False, OPEN_TIME)
    except BaseException:
        names.forget(device.vdev)
        raise


def _image(node: Node) -> dict[str, Any]:
    """What a disk's definition says of it."""
    return {
        "target": node.filename,
        "access": "ro" if node.readonly else "rw",
        "format": node.format,
        "cache": "none" if node.direct else "writeback",
        "discard": node.discard,
    }


@command("device_del")
async def device_del(monitor: Monitor, params: DeviceDelParams) -> None:
    """The reply comes when the guest is asked, DEVICE_DELETED when it has let go."""
    drive = monitor.names.drive(params.id, monitor.service.drive_list())
    what = f"device_del {drive.vdev}"
    if monitor.is_under_way(what):
        raise Refused(
            f"cannot remove {params.id}: the guest is asked already. DEVICE_DELETED tells when it is gone."
        )
    await monitor.begin(what, _unplug(monitor, drive.vdev))


async def _unplug(monitor: Monitor, vdev: str) -> None:
    try:
        await monitor.service.drive_remove(vdev, False, False, UNPLUG_TIME)
    except TimedOut:
        device = monitor.names.of(vdev)
        monitor.tell("DEVICE_UNPLUG_GUEST_ERROR", device=device.id, path=device.path)
        raise


@command("query-block")
async def query_block(monitor: Monitor, params: NoParams) -> list[dict[str, Any]]:
    told = []
    for drive in monitor.service.drive_list():
        device = monitor.names.of(drive.vdev)
        there = {"inserted": _inserted(drive, device.node_name)} if drive.target else {}
        told.append(
            {
                "device": "",  # that is for disks of QEMU's -drive
                "qdev": device.id,
                "type": "unknown",
                "removable": not drive.target,
                "locked": False,
                "io-status": "failed" if drive.error else "ok",
                **there,
            }
        )
    return told


@command("block_resize")
async def block_resize(monitor: Monitor, params: ResizeParams) -> None:
    drive = _disk(monitor, params)
    if params.size < drive.size:
        raise Refused(
            f"cannot make {drive.vdev} smaller than its {drive.size} bytes: what is beyond would be lost. "
            "By rpc.sock, drive.resize with shrink does it."
        )
    await monitor.service.drive_resize(drive.vdev, params.size, False)


@command("block_set_io_throttle")
async def block_set_io_throttle(monitor: Monitor, params: ThrottleParams) -> None:
    limits = LimitsConfig(bytes_per_second=params.bps, ops_per_second=params.iops)
    await monitor.service.drive_set_limits(_disk(monitor, params).vdev, limits)


def _disk(monitor: Monitor, params: DiskParams) -> DriveInfo:
    drives = monitor.service.drive_list()
    if params.node_name is not None:
        return monitor.names.drive_of_node(params.node_name, drives)
    return monitor.names.drive(params.id or params.device or "", drives)


# ---- as QEMU tells of them


def _inserted(drive: DriveInfo, node: str) -> dict[str, Any]:
    limits = drive.limits
    return {
        **_info(node, drive.format, drive.target, drive.access == "ro", drive.size, drive.cache in DIRECT),
        "bps": limits.bytes_per_second,
        "iops": limits.ops_per_second,
    }


def _info(node: str, driver: str, filename: str, readonly: bool, size: int, direct: bool) -> dict[str, Any]:
    return {
        "node-name": node,
        "drv": driver,
        "file": filename,
        "ro": readonly,
        "encrypted": False,
        "backing_file_depth": 0,
        "detect_zeroes": "off",
        "write_threshold": 0,
        "cache": {"writeback": True, "direct": direct, "no-flush": False},
        "image": {"filename": filename, "format": driver, "virtual-size": size},
        **dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0),
    }
