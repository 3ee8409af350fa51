"""Where things are, for the daemon and its client alike; imports nothing heavy, for the client's sake."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

#: A guest's name is a folder's name, too: RUN_DIR/NAME/rpc.sock.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: Where ``start NAME`` finds NAME.toml.
CONFIG_DIR = Path("/etc/xenpvd")


def run_dir() -> Path:
    """/run/xenpvd for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/run/xenpvd")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "xenpvd"


#: Values of a definition that name no file; a file that is called so is ./auto
WORDS = ("", "auto", "pvgrub")


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
        if isinstance(table, dict) and isinstance(path := table.get(key), str) and path not in WORDS:
            table[key] = str(folder / path)
