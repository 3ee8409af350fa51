"""Becomes another program that ends with its parent and can open no files but its own; run as a script.

``python -IS confine.py PARENT FD,FD PROGRAM ARGUMENT...``: the program can read its libraries and what it
needs to find a server, and open the files anew that it has by these descriptors. So an image that names
another file in a way that nobody has thought of, or takes the program over, finds none. Where the kernel has
no Landlock, or does not let us use it, the program is confined by its user's rights alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38

# linux/landlock.h; the system calls have these numbers on all architectures
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = (
    1 << 0,
    1 << 1,
    1 << 2,
    1 << 3,
    1 << 14,
    1 << 15,
)
#: All rights to files that each version of it knows; the last also for those that come later
RIGHTS = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)

#: Programs and libraries; and what a resolver reads
FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/opt", "/gnu/store", "/nix/store", "/sys")
FILES = (
    "/etc/ld.so.cache", "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/nsswitch.conf",
    "/etc/gai.conf", "/etc/services",
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def restrict(files: list[int], program: str) -> bool:
    """From now on this process opens these only. False if that cannot be had here."""
    version = _libc.syscall(
        LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return False
    rights = RIGHTS[min(version, len(RIGHTS) - 1)]
    handled = struct.pack("<Q", rights)
    rules = _libc.syscall(LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    for path in (*FOLDERS, os.path.dirname(program)):  # noqa: PTH120
        _allow(rules, path, rights & (EXECUTE | READ_FILE | READ_DIR))
    for path in FILES:
        _allow(rules, path, rights & READ_FILE)
    _allow(rules, os.devnull, rights & (READ_FILE | WRITE_FILE))  # QEMU tries there what locks it has
    for fd in files:
        _add(rules, fd, rights & (READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV))
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = int(_libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0))
    os.close(rules)
    return done == 0


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # there is none
    _add(rules, fd, rights)
    os.close(fd)


def _add(rules: int, fd: int, rights: int) -> None:
    rule = struct.pack("<Qi", rights, fd)
    _libc.syscall(LANDLOCK_ADD_RULE, rules, LANDLOCK_RULE_PATH_BENEATH, rule, 0)


def main(parent: str, files: str, program: str, *arguments: str) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the parent has gone")
    restrict([int(fd) for fd in files.split(",") if fd], program)
    os.execv(program, (program, *arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
