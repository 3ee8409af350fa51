"""xenstore as its documents say it, in the plainest way: dictionaries, no accounts, no generations.

Written from docs/misc/xenstore.txt of Xen, for the state machine in test_model.py. Perms are lists of
(letter, domid), the owner's first. What a transaction saw is checked by doing it again when it commits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Perm = tuple[str, int]
Answer = bytes | str

READ, WRITE = "rb", "wb"


class Refused(Exception):
    """With the error's name."""


@dataclass
class Node:
    value: bytes
    perms: list[Perm]


@dataclass
class Limits:
    nodes: int = 6
    watches: int = 3
    transactions: int = 2
    node_size: int = 24


def may(perms: list[Perm], domid: int, letters: str) -> bool:
    if domid in (0, perms[0][1]):
        return True
    letter = next((letter for letter, who in perms[1:] if who == domid), perms[0][0])
    return letter in letters


def above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class Tree:
    def __init__(self) -> None:
        self.nodes = {"/": Node(b"", [("n", 0)])}
        #: changes since the beginning
        self.changes = 0

    def copy(self) -> Tree:
        tree = Tree()
        tree.nodes = {path: Node(node.value, [*node.perms]) for path, node in self.nodes.items()}
        return tree

    def children(self, path: str) -> list[str]:
        return [each.rpartition("/")[2] for each in self.nodes if each != "/" and above(each) == path]

    def owned(self, domid: int) -> int:
        return sum(node.perms[0][1] == domid for node in self.nodes.values())

    def size(self, path: str) -> int:
        names = sum(len(name) + 1 for name in self.children(path))
        return len(self.nodes[path].value) + names

    def find(self, path: str, domid: int, letters: str) -> Node:
        """Raises :class:`Refused`: ENOENT only to who might know, by the nearest node that is there."""
        if path in self.nodes:
            if not may(self.nodes[path].perms, domid, letters):
                raise Refused("EACCES")
            return self.nodes[path]
        nearest = path
        while nearest not in self.nodes:
            nearest = above(nearest)
        raise Refused("ENOENT" if may(self.nodes[nearest].perms, domid, letters) else "EACCES")

    def do(self, operation: str, path: str, rest: bytes, domid: int, limits: Limits | None) -> Answer:
        """The answer; ``limits`` None: there are none."""
        try:
            return getattr(self, operation)(path, rest, domid, limits if domid else None)
        except Refused as refused:
            return str(refused)

    def read(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        return self.find(path, domid, READ).value

    def directory(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        self.find(path, domid, READ)
        return b"".join(sorted(name.encode() + b"\0" for name in self.children(path)))

    def get_perms(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        return wire(self.find(path, domid, READ).perms)

    def write(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        try:
            node = self.find(path, domid, WRITE)
        except Refused as refused:
            if str(refused) != "ENOENT":
                raise
            self._create(path, rest, domid, limits)
        else:
            if limits and self.size(path) - len(node.value) + len(rest) > limits.node_size:
                raise Refused("ENOSPC")
            node.value = rest
        self.changes += 1
        return b"OK\0"

    def mkdir(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        if path in self.nodes:
            self.find(path, domid, WRITE)
            return b"OK\0"
        return self.write(path, b"", domid, limits)

    def _create(self, path: str, value: bytes, domid: int, limits: Limits | None) -> None:
        missing = [path]
        while above(missing[-1]) not in self.nodes:
            missing.append(above(missing[-1]))
        parent = above(missing[-1])
        if limits:
            if self.owned(domid) + len(missing) > limits.nodes:
                raise Refused("ENOSPC")
            if len(value) > limits.node_size:
                raise Refused("ENOSPC")
            if self.size(parent) + len(missing[-1].rpartition("/")[2]) + 1 > limits.node_size:
                raise Refused("ENOSPC")
        perms = [*self.nodes[parent].perms]
        if domid:
            perms[0] = (perms[0][0], domid)
        for new in reversed(missing):
            self.nodes[new] = Node(value if new == path else b"", [*perms])

    def remove(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        try:
            self.find(path, domid, WRITE)
        except Refused as refused:
            if str(refused) == "ENOENT" and above(path) in self.nodes:
                return b"OK\0"
            raise
        for gone in [each for each in self.nodes if each == path or each.startswith(f"{path}/")]:
            del self.nodes[gone]
        self.changes += 1
        return b"OK\0"

    def set_perms(self, path: str, rest: bytes, domid: int, limits: Limits | None) -> bytes:
        perms = [(chr(word[0]), int(word[1:])) for word in rest.split(b"\0")[:-1]]
        if path in self.nodes:
            node = self.nodes[path]
            if domid not in (0, node.perms[0][1]):
                raise Refused("EACCES")
        else:
            node = self.find(path, domid, WRITE)
        if domid and perms[0][1] != node.perms[0][1]:
            raise Refused("EPERM")
        node.perms = perms
        self.changes += 1
        return b"OK\0"

    def hears(self, path: str, domid: int) -> bool:
        """May the domain know of a change of ``path``, as it is now?"""
        known = [each for each in (path, above(path)) if each in self.nodes]
        return path in self.nodes and any(may(self.nodes[each].perms, domid, READ) for each in known)


@dataclass
class Transaction:
    domid: int
    #: of the tree, when it began
    changes: int
    operations: list[tuple[str, str, bytes, Answer]] = field(default_factory=list)
    failed: bool = False


def wire(perms: list[Perm]) -> bytes:
    return b"".join(f"{letter}{domid}".encode() + b"\0" for letter, domid in perms)
