"""Unix sockets that appear whole: whoever finds one can connect to it. And who it was."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from xenpvd.errors import HostError

BACKLOG = 64


def listen(path: Path, mode: int = 0o660) -> socket.socket:
    """A unix stream socket bound by another name, given its ``mode``, listening, and only then renamed to
    ``path``, where an old one is replaced. Raises :class:`HostError`."""
    new = path.with_suffix(".new")  # no longer than path: sun_path has 107 bytes
    if len(os.fsencode(path)) > 107:
        why = f"cannot listen at {path}: a socket's path has at most 107 bytes. Choose a shorter --run-dir."
        raise HostError(why, errno.ENAMETOOLONG, str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        new.unlink(missing_ok=True)
        sock.bind(str(new))
        new.chmod(mode)
        sock.listen(BACKLOG)
        new.rename(path)
    except OSError as fault:
        sock.close()
        why = f"cannot listen at {path}: {fault.strerror}. Check the directory."
        raise HostError(why, fault.errno or 0, str(path)) from None
    sock.setblocking(False)
    return sock


class Credentials(NamedTuple):
    """Who is at the other end, as of its connect()."""

    pid: int
    uid: int


def credentials(transport: asyncio.BaseTransport) -> Credentials:
    """Of a unix socket's peer (SO_PEERCRED)."""
    raw = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("iii", raw)
    return Credentials(pid, uid)
