"""Who may do what to a node: an owner, everybody's rights, and exceptions by domain.

Semantics: docs/misc/xenstore.txt of Xen. The first entry names the owner, who may do all, and the rights of
every domain that no later entry names. Domain 0 may do all everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from errno import EINVAL
from typing import NamedTuple

from xenpvd.errors import XenError

READ = 1
WRITE = 2
OWNER = 4

_LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_LETTER_OF = {rights: letter for letter, rights in _LETTERS.items()}
_WIRE = re.compile(rb"([nrwb])([0-9]{1,5})")
_DOMID_MAX = 65535


class Perm(NamedTuple):
    domid: int
    rights: int


#: Never empty; the first entry is the owner's.
Perms = tuple[Perm, ...]

#: Owned by domain 0, closed for everybody else.
PRIVATE: Perms = (Perm(0, 0),)


def parse(words: Sequence[bytes]) -> Perms:
    """From wire form (``[b"n1", b"r0"]``). Raises ``XenError`` EINVAL for none or a malformed one."""
    entries = []
    for word in words:
        match = _WIRE.fullmatch(word)
        if match is None or int(match[2]) > _DOMID_MAX:
            raise XenError(EINVAL, f"no permission: {word[:32]!r}")
        entries.append(Perm(int(match[2]), _LETTERS[match[1].decode()]))
    if not entries:
        raise XenError(EINVAL, "no permissions")
    return tuple(entries)


def words(perms: Perms) -> list[str]:
    """In wire form, the owner's entry first."""
    return [f"{_LETTER_OF[perm.rights]}{perm.domid}" for perm in perms]


def rights(perms: Perms, who: tuple[int, ...]) -> int:
    """READ, WRITE and OWNER as ``who`` has them: a domain, and the one that it acts for if there is one."""
    owner = perms[0]
    if owner.domid in who or 0 in who:
        return READ | WRITE | OWNER
    for perm in perms[1:]:
        if perm.domid in who:
            return perm.rights
    return owner.rights


def inherited(parent: Perms, creator: int) -> Perms:
    """What a new node starts with: its parent's, but a guest owns what it creates."""
    if creator == 0:
        return parent
    return (parent[0]._replace(domid=creator), *parent[1:])
