"""Kernel modules out of an unpacked package: what each needs, and its plain (uncompressed) content."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path

from lab.progress import LabError


def load_order(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """``names`` and all that they need, each after its needs. Raises LabError for one that is not there.

    ``folder`` is the package's lib/modules/VERSION. No depmod is needed: a module says what it needs.
    """
    paths = {_name(path): path for path in (folder / "kernel").rglob("*.ko*")}
    builtin = {_name(Path(line)) for line in (folder / "modules.builtin").read_text().split()}
    loaded: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in loaded or name in builtin:
            return
        if name not in paths:
            raise LabError(f"cannot find the kernel module {name} in {folder}. Run make setup REFRESH=1.")
        content = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            content = lzma.decompress(content)
        for need in needs(content):
            add(need)
        loaded[name] = content

    for name in names:
        add(name)
    return loaded


def needs(module: bytes) -> list[str]:
    """The modules that this one names in its .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def _name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")
