"""Kernel modules out of an unpacked package: those wanted with what they need, plain, in their order."""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.progress import LabError

#: fnmatch patterns of what :func:`take` reads; Debian 12 has it below lib, Debian 13 below usr/lib
FILES = ("*lib/modules/*/kernel/*.ko*", "*lib/modules/*/modules.builtin")


def take(package: Path, names: Sequence[str]) -> None:
    """Reduce an unpacked kernel's modules to the folder ``modules``: NAME.ko each, and ``order``."""
    [builtin] = package.rglob("modules.builtin")
    found = load_order(builtin.parent, names)
    (package / "modules").mkdir()
    for name, content in found.items():
        (package / "modules" / f"{name}.ko").write_bytes(content)
    (package / "modules" / "order").write_text("".join(f"{name}\n" for name in found))
    for folder in ("lib", "usr"):
        shutil.rmtree(package / folder, ignore_errors=True)


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
