"""Which file a word on the command line means, where a guest's definition is wanted."""

from __future__ import annotations

from pathlib import Path

from xenpvd import paths
from xenpvd.ctl.rundir import NoGuest, RunDir, gone, misnamed


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
