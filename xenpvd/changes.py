"""What differs between two definitions, and which of it counts at once for a guest that runs by the first."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from pydantic import BaseModel

from xenpvd.config import GuestConfig

#: TOML paths, with *; all else waits for the next start. [access] is the daemon's (daemon.py).
LIVE = ("console.*", "metrics.*", "on_*", "disk.*.limits")


class Changes(NamedTuple):
    """TOML paths: those that count now, and those that wait for the next start. ``running`` is what the guest
    is by the former."""

    applied: tuple[str, ...]
    next_start: tuple[str, ...]
    running: GuestConfig


def differences(old: BaseModel, new: BaseModel, prefix: str = "") -> Iterator[str]:
    """The TOML paths (``console.log_max``, ``disk.0.limits``) where they differ. A disk is the one of its
    vdev, and told by its number in ``new``; just ``disk`` says that others are there, or in another order."""
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, BaseModel) and name != "limits":
            yield from differences(before, after, f"{prefix}{name}.")
        elif name == "disk":
            there = {disk.vdev: disk for disk in before}
            for number, disk in enumerate(after):
                yield from differences(there.get(disk.vdev, disk), disk, f"disk.{number}.")
            if list(there) != [disk.vdev for disk in after]:
                yield "disk"
        else:
            yield f"{prefix}{name}"


def between(old: GuestConfig, new: GuestConfig) -> Changes:
    found = [path for path in differences(old, new) if not path.startswith("access.")]
    applied = [path for path in found if any(fnmatchcase(path, pattern) for pattern in LIVE)]
    waiting = [path for path in found if path not in applied]
    return Changes(tuple(applied), tuple(waiting), _merged(old, new, applied) if waiting else new)


def _merged(old: GuestConfig, new: GuestConfig, applied: list[str]) -> GuestConfig:
    tops = {path.partition(".")[0] for path in applied} - {"disk"} | {"access"}
    limits = {disk.vdev: disk.limits for disk in new.disk}
    disks = tuple(disk.model_copy(update={"limits": limits.get(disk.vdev, disk.limits)}) for disk in old.disk)
    return old.model_copy(update={"disk": disks, **{top: getattr(new, top) for top in tops}})
