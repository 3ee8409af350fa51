"""Descriptors that the daemon was started with: by systemd (sd_listen_fds(3)), or by its own option --fd."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping

from xenpvd.errors import BadConfig
from xenpvd.paths import DESCRIPTOR

#: SD_LISTEN_FDS_START; what is below is the standard input, output and errors
FIRST = 3


def from_options(options: Iterable[str]) -> list[tuple[str, int]]:
    """Of ``NAME=N`` each. Raises :class:`BadConfig`."""
    found = []
    for option in options:
        name, _, number = option.partition("=")
        if not number.isdecimal() or not FIRST <= int(number) < 1 << 31:
            why = f"it must be NAME=N, with N from {FIRST} on, as root=3"
            raise BadConfig(f"cannot use --fd {option}: {why}. The shell opens one by 3<>FILE.")
        found.append((name, int(number)))
    return _checked(found)


def from_systemd(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """What OpenFile=, FileDescriptorStoreMax= and sockets have brought. Raises :class:`BadConfig`."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []  # none, or meant for a process that has started us
    count, names = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_FDNAMES", "")
    if not count.isdecimal() or len(count) > 4:
        raise BadConfig(f"cannot use LISTEN_FDS={count[:64]}: it is no number of descriptors. Unset it.")
    named = dict(enumerate(names.split(":") if names else ()))
    return _checked([(named.get(n, "unknown"), FIRST + n) for n in range(int(count))])


def _checked(found: list[tuple[str, int]]) -> list[tuple[str, int]]:
    for name, fd in found:
        if not DESCRIPTOR.fullmatch(name):
            why = "it takes letters, digits, '.', '_' and '-', and 64 at most"
            raise BadConfig(f"cannot call a descriptor {name[:80]!r}: {why}. Give {fd} another name.")
        try:
            ours = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        except OSError:
            ours = 1
        if ours:  # what has come through exec() does not have the flag
            raise BadConfig(f"cannot use descriptor {name}: {fd} was not passed on. Open it for the daemon.")
    for _, fd in found:
        os.set_inheritable(fd, False)
    return found
