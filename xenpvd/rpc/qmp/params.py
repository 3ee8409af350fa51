"""What QMP's commands about disks take: QEMU's names, as far as they mean something here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from xenpvd.config import AbsolutePath, Vdev
from xenpvd.rpc.models import Params

_NONE = Literal[0]  # a limit that there is not

NodeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,30}$")]
DeviceId = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,63}$")]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


class CacheParams(Params):
    direct: bool = False
    no_flush: Literal[False] = Field(False, alias="no-flush")


class FileParams(Params):
    """A node that is defined in another one, which may have no name."""

    driver: Literal["file", "host_device", "raw"]
    node_name: NodeName | None = Field(None, alias="node-name")
    filename: AbsolutePath | None = None
    file: File | None = None
    readonly: bool = Field(False, alias="read-only")
    discard: Literal["ignore", "unmap"] = "ignore"
    # what changes nothing here
    auto_readonly: bool = Field(False, alias="auto-read-only")
    aio: Literal["threads", "io_uring"] = "threads"
    locking: Literal["auto", "on"] = "auto"
    cache: CacheParams = CacheParams()
    detect_zeroes: Literal["off"] = Field("off", alias="detect-zeroes")

    @property
    def unmap(self) -> bool:
        return self.discard == "unmap"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in ("filename", "file") if getattr(self, name) is not None]
        if given != ["file" if self.driver == "raw" else "filename"]:
            raise PydanticCustomError(
                "node", "raw has a file, another node; file and host_device have a filename"
            )
        return self


class BlockdevAddParams(FileParams):
    node_name: NodeName = Field(alias="node-name")


def _kind(value: Any) -> str:
    return "name" if isinstance(value, str) else "node"


#: A node's name, or a node defined at once.
File = Annotated[
    Annotated[NodeName, Tag("name")] | Annotated[FileParams, Tag("node")],
    Discriminator(_kind),
]


class NodeParams(Params):
    node_name: str = Field(alias="node-name")


class NodesParams(Params):
    flat: bool = False


class DeviceAddParams(Params):
    driver: str
    vdev: Vdev
    id: DeviceId | None = None
    drive: str | None = None
    logical_block_size: Literal[512, 4096] = 512

    @field_validator("driver")
    @classmethod
    def _known(cls, driver: str) -> str:
        if driver not in ("xen-disk", "xen-cdrom"):
            raise PydanticCustomError(
                "driver",
                "there are xen-disk and xen-cdrom; by rpc.sock, channel.add adds a console and "
                "vcpu.set_online sets the CPUs",
            )
        return driver

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if self.driver == "xen-disk" and self.drive is None:
            raise PydanticCustomError(
                "drive", "drive is missing: the name of a block node, which blockdev-add defines"
            )
        return self


class DeviceDelParams(Params):
    id: str


class DiskParams(Params):
    """Exactly one of ``id``, ``device`` (both a device's id here) and ``node-name``."""

    id: str | None = None
    device: str | None = None
    node_name: str | None = Field(None, alias="node-name")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.id, self.device, self.node_name].count(None) != 2:
            raise PydanticCustomError("disk", "exactly one of id, device and node-name")
        return self


class ResizeParams(DiskParams):
    size: Bytes


class ThrottleParams(DiskParams):
    """Limits are for reads and writes together; an idle disk saves up a second of them."""

    bps: int = Field(ge=0, le=1 << 40)
    bps_rd: _NONE
    bps_wr: _NONE
    iops: int = Field(ge=0, le=1 << 30)
    iops_rd: _NONE
    iops_wr: _NONE
    bps_max: _NONE = 0
    bps_rd_max: _NONE = 0
    bps_wr_max: _NONE = 0
    iops_max: _NONE = 0
    iops_rd_max: _NONE = 0
    iops_wr_max: _NONE = 0
    iops_size: _NONE = 0
