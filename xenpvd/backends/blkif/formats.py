"""What a disk's image can be beside raw, and how a block engine is told of it; sans-IO.

An image is what somebody else may have made. So its format is what the definition says, never guessed, and
one that names further files (a backing file, extents, external data) is refused: whoever made it would choose
which of the host's files a guest can read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: Reads so many bytes at an offset, fewer at the end.
Read = Callable[[int, int], bytes]

NBD_PORT = 10809

#: Seconds that a lost NBD server is waited for before its requests fail; and for a first connection.
NBD_RECONNECT, NBD_OPEN = 3600, 10


class Misfit(Exception):
    """The image cannot be used so: (why, what to do)."""

    def __init__(self, why: str, cure: str) -> None:
        super().__init__(why)
        self.why, self.cure = why, cure


def is_remote(target: str) -> bool:
    return target.startswith(("nbd://", "nbd+unix://"))


def nbd(target: str) -> dict[str, Any]:
    """The block node of ``nbd://host:port/export`` or ``nbd+unix:///export?socket=PATH``. Raises
    :class:`Misfit`."""
    cure = "Write nbd://HOST:PORT/EXPORT, or nbd+unix:///EXPORT?socket=/PATH."
    try:
        url = urlsplit(target)
        port = NBD_PORT if url.port is None else url.port
    except ValueError as fault:
        raise Misfit(f"it is no address ({fault})", cure) from None
    if url.fragment:
        raise Misfit(f"#{url.fragment} is no part of such an address", "Write %23 for a # in a name.")
    query = parse_qs(url.query)
    if url.scheme == "nbd":
        if not url.hostname or query or url.username is not None:
            raise Misfit("it names no host, or too much", cure)
        if not port:
            raise Misfit("no server has port 0", cure)
        server = {"type": "inet", "host": url.hostname, "port": str(port)}
    else:
        paths = query.pop("socket", [])
        if url.netloc or query or len(paths) != 1 or not paths[0].startswith("/"):
            raise Misfit("it names no socket, or too much", cure)
        server = {"type": "unix", "path": paths[0]}
    node: dict[str, Any] = {"driver": "nbd", "server": server, "reconnect-delay": NBD_RECONNECT}
    if export := unquote(url.path.removeprefix("/")):
        node["export"] = export
    return node


def nodes(source: dict[str, Any], form: str, *, readonly: bool) -> list[dict[str, Any]]:
    """The engine's block nodes, from what stores the bytes to ``disk``, which is the guest's."""
    common = {"read-only": readonly, "discard": "unmap", "cache": {"direct": False, "no-flush": False}}
    disk = {"driver": form, "node-name": "disk", "file": "storage", **common}
    if form in _BACKED:
        disk["backing"] = None  # whatever the image says
    return [{**source, "node-name": "storage", **common}, disk]


def keeps_to_itself(form: str) -> bool:
    """Whether an engine's process that ends at once takes writes along that it has answered: those formats
    have tables that are written when a flush asks for it."""
    return form != "raw"


def check(form: str, read: Read, size: int) -> None:
    """Is it of that format, and all in one file? Raises :class:`Misfit`."""
    _CHECKS[form](read, size)


def _check_qcow2(read: Read, _size: int) -> None:
    header = read(0, 104)
    if header[:4] != b"QFI\xfb" or len(header) < 72:
        raise _other("qcow2")
    version, backing = struct.unpack_from(">IQ", header, 4)
    if backing:
        raise _more_files("a backing file")
    if struct.unpack_from(">I", header, 32)[0]:
        raise Misfit("it is encrypted", "Decrypt it: qemu-img convert.")
    if version >= 3 and len(header) >= 80 and struct.unpack_from(">Q", header, 72)[0] & 4:
        raise _more_files("an external data file")


def _check_vmdk(read: Read, _size: int) -> None:
    header = read(0, 512)
    if header[:21] == b"# Disk DescriptorFile":
        raise _more_files("extents in other files")
    if header[:4] != b"KDMV" or len(header) < 512:
        raise _other("vmdk")
    capacity, _grain, at, sectors = struct.unpack_from("<4Q", header, 12)
    if not capacity:
        raise _more_files("extents in other files")
    descriptor = read(at * 512, min(sectors, 64) * 512) if 0 < at < 1 << 32 else b""
    if b"parentfilenamehint" in descriptor.lower():
        raise _more_files("a parent")


def _check_vdi(read: Read, _size: int) -> None:
    if read(64, 4) != b"\x7f\x10\xda\xbe":
        raise _other("vdi")


def _check_vhdx(read: Read, _size: int) -> None:
    if read(0, 8) != b"vhdxfile":
        raise _other("vhdx")


def _check_vpc(read: Read, size: int) -> None:
    footer = read(max(0, size - 512), 512)
    if footer[:8] != b"conectix" or len(footer) < 512:
        raise _other("vpc")
    if struct.unpack_from(">I", footer, 60)[0] == 4:
        raise _more_files("a parent")


_CHECKS: dict[str, Callable[[Read, int], None]] = {
    "qcow2": _check_qcow2,
    "vmdk": _check_vmdk,
    "vdi": _check_vdi,
    "vhdx": _check_vhdx,
    "vpc": _check_vpc,
}
FORMATS = tuple(_CHECKS)
_BACKED = ("qcow2", "vmdk")


def _other(form: str) -> Misfit:
    return Misfit(f"it is no {form} image", "Set format to what it is: qemu-img info tells.")


def _more_files(what: str) -> Misfit:
    return Misfit(
        f"it has {what}, and an image must not choose the host's files",
        "Make one file of it: qemu-img convert.",
    )
