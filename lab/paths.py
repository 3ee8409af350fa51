"""Where the lab keeps its things: one cache folder, safe to delete at any time when no lab host runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def cache() -> Path:
    """The cache folder: $XENPVD_CACHE, or xenpvd in the user's own cache folder."""
    own = os.environ.get("XENPVD_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "xenpvd"


def asset(name: str, file: str = "") -> Path:
    """A fetched or built thing, ``name`` being its folder."""
    return cache() / "assets" / name / file


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold ``path`` (a file made for it) against other processes that do the same; wait for our turn.

    With ``how`` LOCK_SH they may hold it together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"wait  for another process that holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(lock, how)
        yield


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder which takes ``folder``'s place when the block ends well, and is deleted if not.

    So a folder that exists is complete, however often the work was interrupted. Its parent must be held
    (:func:`locked`): what an interrupted try has left there is deleted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stray in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stray, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        yield fresh
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(old / "gone")
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
