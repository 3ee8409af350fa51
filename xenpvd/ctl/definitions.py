"""Which file a word on the command line means, where a guest's definition is wanted; and whose a file is."""

from __future__ import annotations

import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from xenpvd import paths
from xenpvd.ctl.output import USAGE, Failure
from xenpvd.ctl.rundir import NoGuest, RunDir, gone, misnamed

#: Seconds for all files together: one on storage that hangs must not hide the others.
READ_TIME = 2.0


def is_path(guest: str) -> bool:
    return "/" in guest or guest.endswith(".toml")


def find(place: RunDir, guest: str) -> Path | None:
    """The file that ``guest`` is, or whose name it is; None if there is none. Raises :class:`NoGuest`."""
    if is_path(guest):
        return Path(guest).absolute()
    if not paths.NAME.fullmatch(guest):
        raise NoGuest(misnamed(guest), guest)
    file = place.definition(guest)
    return None if file is None or gone(file) else file


def missing(place: RunDir, guest: str, verb: str) -> NoGuest:
    """What to say where :func:`find` has none."""
    if (file := place.remembered(guest)) is not None:
        return NoGuest(f"{guest} was last started from {file}, which is gone. Give its file.", guest)
    looked = " or ".join(str(folder / f"{guest}.toml") for folder in paths.config_dirs())
    here = f"./{guest}.toml"
    cure = "Write it, or give another file."
    if Path(here).exists():
        cure = f"For the file here: xenpvctl {verb} {here}"
    return NoGuest(f"no definition of {guest}: there is no {looked}. {cure}", guest)


def read(file: Path) -> tuple[str, dict[str, Any]]:
    """What ``file`` says, and the name that a daemon takes by it; the daemon checks the rest. Raises
    :class:`Failure`."""
    import tomllib

    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would never end, and the daemon reads it again
            raise Failure(f"cannot read {file}: it is no regular file. Write the TOML to one.", USAGE)
        definition = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise Failure(f"cannot read {file}: {fault.strerror}. Check the path.", USAGE) from None
    except (ValueError, RecursionError) as fault:  # not all of tomllib's are its own: digits, depth
        raise Failure(f"cannot use {file}: no valid TOML: {fault}.", USAGE) from None
    paths.anchor(definition, file.parent)
    name = definition.setdefault("name", file.stem)
    if not isinstance(name, str) or not paths.NAME.fullmatch(name):
        raise Failure(f"cannot use {file}: {misnamed(name)} Set name.", USAGE)
    return name, definition


def defined(place: RunDir) -> list[tuple[str, Path]]:
    """All guests that can be started by name: what their daemon would be called, and by which file; where
    that does not tell in time, it goes by the word that ``start`` takes."""
    files = {word: file for word in place.definitions() if (file := place.definition(word)) is not None}
    told: dict[str, str] = {}

    def look(word: str, file: Path) -> None:
        with suppress(Failure):
            told[word] = read(file)[0]

    looks = [threading.Thread(target=look, args=each, daemon=True) for each in files.items()]
    for each in looks:
        each.start()
    limit = time.monotonic() + READ_TIME
    for each in looks:
        each.join(max(0.0, limit - time.monotonic()))
    return sorted({(told.get(word, word), file) for word, file in files.items()})
