"""Where things are, for the daemon and its client alike; imports nothing heavy, for the client's sake."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: A guest's name is a folder's name, too: RUN_DIR/NAME/rpc.sock.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

#: Where ``start NAME`` finds NAME.toml.
CONFIG_DIR = Path("/etc/xenpvd")


def run_dir() -> Path:
    """/run/xenpvd for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/run/xenpvd")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "xenpvd"
