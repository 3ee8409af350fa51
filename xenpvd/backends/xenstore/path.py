"""Node paths: what is one, and its relatives. Rules: docs/misc/xenstore.txt of Xen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from errno import EINVAL

from xenpvd.abi.io_xs_wire import XENSTORE_ABS_PATH_MAX
from xenpvd.errors import XenError

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"

_CHARACTERS = re.compile(rb"[-A-Za-z0-9/_@]+")
_HOME = re.compile(r"/local/domain/[0-9]{1,5}/")


def home(domid: int) -> str:
    """The path that a domain's relative paths begin with."""
    return f"/local/domain/{domid}"


def canonical(raw: bytes, base: str, path_max: int, *, special: bool = False) -> str:
    """The absolute path that ``raw`` names for a connection whose home is ``base``.

    ``path_max`` limits what follows ``/local/domain/<domid>/``; ``special`` allows ``@name``, for
    watches and permissions. Raises ``XenError`` EINVAL.
    """
    if not _CHARACTERS.fullmatch(raw):
        raise XenError(EINVAL, "no path: empty, or a character other than A-Z a-z 0-9 - / _ @")
    path = raw.decode("ascii")
    if path[0] == "@":
        if not special:
            raise XenError(EINVAL, "@names are for watches and permissions only")
    elif path[0] != "/":
        path = f"{base}/{path}"
    if "//" in path or (path[-1] == "/" and path != "/"):
        raise XenError(EINVAL, "no path: a doubled or trailing slash")
    prefix = _HOME.match(path)
    if len(path) > XENSTORE_ABS_PATH_MAX or len(path) - (prefix.end() if prefix else 0) > path_max:
        raise XenError(EINVAL, "the path is too long")
    return path


def parent(path: str) -> str:
    """The path above; "/" for a node right below the root, for the root itself and for ``@name``."""
    return path.rpartition("/")[0] or "/"


def name(path: str) -> str:
    """The last part."""
    return path.rpartition("/")[2]


def child(path: str, leaf: str) -> str:
    return f"/{leaf}" if path == "/" else f"{path}/{leaf}"


def upwards(path: str) -> Iterator[str]:
    """``path`` and every path above it, the root last; ``@name/x`` ends with ``@name``."""
    yield path
    while "/" in path and path != "/":
        path = parent(path)
        yield path


def level(path: str) -> int:
    """How far below the root, or below its ``@name``."""
    return 0 if path == "/" else path.count("/")
