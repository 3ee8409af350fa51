"""Where things are, for the daemon and its client alike; imports nothing heavy, for the client's sake."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

#: A guest's name is a folder's name, too: RUN_DIR/NAME/rpc.sock.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: The system's definitions: NAME.toml is that of NAME.
CONFIG_DIR = Path("/etc/xenpvd")
#: What else lies there: the gateway's own
_NO_GUEST = "gateway"


def user_config() -> Path:
    """The user's folder for the configuration of programs, as the XDG specification has it."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def config_dirs() -> list[Path]:
    """Where definitions are, the first counts: a user's own come before the system's."""
    return [CONFIG_DIR] if os.geteuid() == 0 else [user_config() / "xenpvd", CONFIG_DIR]


def definition(name: str) -> Path | None:
    """NAME.toml in the first folder that has one; also if this user may not read it."""
    return next((file for folder in config_dirs() if os.path.lexists(file := folder / f"{name}.toml")), None)


def definitions() -> set[str]:
    """The names of those that have one."""
    names = {file.stem for folder in config_dirs() for file in folder.glob("*.toml")} - {_NO_GUEST}
    return {name for name in names if NAME.fullmatch(name)}


def run_dir() -> Path:
    """/run/xenpvd for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/run/xenpvd")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "xenpvd"


def state_dir(name: str) -> Path:
    """What a daemon keeps for people: what its unit says (StateDirectory=), or where that would be."""
    if told := os.environ.get("STATE_DIRECTORY"):
        return Path(told.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/xenpvd") / name
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "xenpvd" / name


def open_regular(path: Path, flags: int, mode: int) -> int:
    """``path`` in a folder that may be somebody else's: it is opened if it is a file, and not if it is what
    they would like to have opened (a link), or what would not come back (a pipe). Raises OSError."""
    unfit = OSError(errno.EINVAL, "it is no regular file", str(path))
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as fault:
        if fault.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise unfit from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise unfit
    return fd


#: What a descriptor that the daemon was given can be called; a disk's target of that name is fd:NAME.
DESCRIPTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BY_DESCRIPTOR = "fd:"

#: Values of a definition that name no file, as fd:NAME does; a file that is called so is ./auto
WORDS = ("", "auto", "pvgrub")
#: How those begin that name something of another server
REMOTE = ("nbd://", "nbd+unix://")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")


def anchor(definition: dict[str, Any], folder: Path) -> None:
    """Make the relative paths of a guest definition absolute: they are meant from its file's ``folder``.

    What is not as it should be is left to the model, which says so.
    """
    console = definition.get("console")
    places = [(definition, "kernel"), (definition, "ramdisk"), (definition.get("shim"), "path")]
    places += [(console, "log"), (console, "xen_log")]
    for tables, key in (("disk", "target"), ("channel", "log")):
        found = definition.get(tables)
        places += [(table, key) for table in (found if isinstance(found, list) else ())]
    for table, key in places:
        if not isinstance(table, dict) or not isinstance(path := table.get(key), str):
            continue
        if path not in WORDS and not path.startswith(BY_DESCRIPTOR) and not _ADDRESS.match(path):
            table[key] = str(folder / path)
