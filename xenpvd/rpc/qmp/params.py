"""What QMP's commands about disks take: QEMU's names, as far as they mean something here."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from xenpvd.config import AbsolutePath, Vdev
from xenpvd.paths import BY_DESCRIPTOR, DESCRIPTOR
from xenpvd.rpc.models import Params

_NONE = Literal[0]  # a limit that there is not

NodeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,30}$")]
DeviceId = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,63}$")]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


def _stored(filename: str) -> str:
    name = filename.removeprefix(BY_DESCRIPTOR)
    is_path = filename.startswith("/") and "\0" not in filename
    if not is_path and (name == filename or not DESCRIPTOR.fullmatch(name)):
        raise PydanticCustomError("filename", "it must be an absolute path, or fd:NAME")
    return filename


#: A path, or a descriptor that the daemon was given
Filename = Annotated[str, Field(max_length=4096), AfterValidator(_stored)]


def _host(host: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", host):
        try:
            IPv6Address(host.replace("%", "/"))  # a target's URL has no room for a zone
        except ValueError:
            raise PydanticCustomError("host", "it must be a host's name, or its address") from None
    return host


def _port(port: str) -> str:
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise PydanticCustomError("port", "it must be a number from 1 to 65535, as a text")
    return port


class InetParams(Params):
    """An NBD server."""

    type: Literal["inet"]
    host: Annotated[str, AfterValidator(_host)]
    port: Annotated[str, AfterValidator(_port)]

    def url(self, export: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{quote(export, safe='')}"


class UnixParams(Params):
    """An NBD server."""

    type: Literal["unix"]
    path: AbsolutePath

    def url(self, export: str) -> str:
        return f"nbd+unix:///{quote(export, safe='')}?socket={quote(self.path)}"


#: Which key of a node says what its bytes are stored in; with all other drivers, which are formats: file
_STORAGE = {"file": "filename", "host_device": "filename", "nbd": "server"}


class CacheParams(Params):
    direct: bool = False
    no_flush: Literal[False] = Field(False, alias="no-flush")


class FileParams(Params):
    """A node that is defined in another one, which may have no name."""

    driver: Literal["file", "host_device", "nbd", "raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]
    node_name: NodeName | None = Field(None, alias="node-name")
    filename: Filename | None = None
    server: Annotated[InetParams | UnixParams, Field(discriminator="type")] | None = None
    export: str | None = Field(None, max_length=1024)
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
        given = [name for name in ("filename", "server", "file") if getattr(self, name) is not None]
        if given != [_STORAGE.get(self.driver, "file")]:
            raise PydanticCustomError(
                "node",
                "file and host_device have a filename, nbd has a server, a format has a file, another node",
            )
        if self.export is not None and self.driver != "nbd":
            raise PydanticCustomError("node", "only nbd has an export")
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
