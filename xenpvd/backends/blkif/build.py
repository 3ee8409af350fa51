"""Compiles native.c: at installation (by hook.py), and by ``python -m`` this.

The library's name has the source's hash in it, so that one of another source is never taken for it. Where
there is no C compiler everything works without it, only slower.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: native.c, and its parts
SOURCES = HERE / "c"
FLAGS = ["-O2", "-g", "-std=gnu11", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra"]


def _digest() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]")))).hexdigest()


def library() -> Path:
    """Where the compiled source is, or would be."""
    return HERE / f"native-{_digest()[:12]}.so"


def build(flags: list[str] = FLAGS) -> Path:
    """Compile, unless that is done already. Raises :class:`RuntimeError` with the reason."""
    target = library()
    if target.exists():
        return target
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"there is no C compiler ({compiler[0]})")
    made = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [*compiler, *flags, "-o", made, SOURCES / "native.c"], capture_output=True, text=True
    )
    if done.returncode:
        made.unlink(missing_ok=True)
        raise RuntimeError(f"{compiler[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    made.replace(target)
    for old in HERE.glob("native-*.so"):
        if old != target:
            old.unlink()
    return target


if __name__ == "__main__":
    try:
        print(build())
    except RuntimeError as fault:
        sys.exit(
            f"cannot build xen-block's fast data plane: {fault}. Install gcc and libc6-dev; or do without."
        )
