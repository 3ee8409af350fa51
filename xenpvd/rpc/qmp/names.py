"""Names that only QMP knows: block nodes, and device ids.

The daemon knows a disk by its vdev. One that was not made by QMP has that as its device id, too, and
``#vdev`` as its node's name: QEMU's own names begin so, and no client can give such a one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xenpvd.config import MAX_DISKS
from xenpvd.rpc.qmp.protocol import Refused
from xenpvd.views import DriveInfo

#: Two for each disk that a guest may have, and as many again.
NODES_MAX = 4 * MAX_DISKS


@dataclass(frozen=True, slots=True)
class Node:
    """An image that may become a disk. ``filename`` is what the disk's target will be, ``format`` what is in
    there; ``size`` is the file's. ``parent`` is the node it was defined in, with which it goes."""

    name: str
    driver: str
    format: str
    filename: str
    size: int
    readonly: bool
    discard: bool
    direct: bool = False
    child: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    id: str
    vdev: str
    node: str | None = None  # of a name

    @property
    def path(self) -> str:
        """Where QEMU would have it."""
        return f"/machine/peripheral/{self.id}"

    @property
    def node_name(self) -> str:
        return self.node or f"#{self.vdev}"


class Names:
    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._devices: dict[str, Device] = {}  # by vdev

    # -- nodes

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            raise Refused(f"there is no block node {name[:64]!r}. query-named-block-nodes lists them.")
        return self.nodes[name]

    def add(self, nodes: Iterable[Node]) -> None:
        """All of them, or none."""
        added = dict(self.nodes)
        for node in nodes:
            if node.name in added:
                raise Refused(
                    f"cannot add block node {node.name}: there is one already. Choose another name."
                )
            added[node.name] = node
        if len(added) > NODES_MAX:
            raise Refused(f"cannot add block nodes: there may be {NODES_MAX}. Remove some with blockdev-del.")
        self.nodes = added

    def remove(self, name: str) -> None:
        """With those that were defined in it."""
        node = self.node(name)
        if node.parent is not None:
            raise Refused(f"cannot remove block node {name}: it belongs to {node.parent}. Remove that one.")
        self.check_unused(name)
        self.nodes = {key: node for key, node in self.nodes.items() if name not in (key, node.parent)}

    def check_unused(self, name: str) -> None:
        users = [node.name for node in self.nodes.values() if node.child == name]
        users += [device.id for device in self._devices.values() if device.node == name]
        if users:
            raise Refused(f"block node {name} is in use by {users[0]}. Remove that first.")

    # -- devices

    def claim(self, device: Device, drives: Iterable[DriveInfo]) -> None:
        """Before it is made; :meth:`forget` it if that fails."""
        for other in (*self._devices.values(), *(self.of(drive.vdev) for drive in drives)):
            if device.id in (other.id, other.vdev) or device.vdev in (other.id, other.vdev):
                raise Refused(
                    f"cannot add {device.id} as {device.vdev}: there is {other.id} as {other.vdev} already. "
                    "Choose another id and vdev."
                )
        if device.node is not None:
            self.check_unused(device.node)
        self._devices[device.vdev] = device

    def forget(self, vdev: str) -> Device:
        """The device that is gone."""
        device = self.of(vdev)
        self._devices.pop(vdev, None)
        return device

    def forget_devices(self) -> None:
        self._devices.clear()

    def of(self, vdev: str) -> Device:
        return self._devices.get(vdev) or Device(vdev, vdev)

    def drive(self, name: str, drives: Iterable[DriveInfo]) -> DriveInfo:
        """By a device's id, or a disk's vdev."""
        for drive in drives:
            if name in (self.of(drive.vdev).id, drive.vdev):
                return drive
        raise Refused(f"there is no device {name[:64]!r}. query-block lists them by qdev.", "DeviceNotFound")

    def drive_of_node(self, name: str, drives: Iterable[DriveInfo]) -> DriveInfo:
        """The disk whose image that node is, or whose image's file."""
        for drive in drives:
            node = self.of(drive.vdev).node_name
            if name == node or (node in self.nodes and name == self.nodes[node].child):
                return drive
        raise Refused(f"there is no disk of block node {name[:64]!r}. query-block lists them.")
