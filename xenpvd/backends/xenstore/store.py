"""The tree: nodes by absolute path, and what can be done to them, in a transaction or not.

Paths come canonical (``path.canonical``). Everything walks by loops, so depth costs no stack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import EACCES, ENOENT

from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.perms import Perms
from xenpvd.backends.xenstore.quota import Quota
from xenpvd.errors import XenError


@dataclass(slots=True)
class Node:
    """``children`` are leaf names in the order of their creation, ``names_size`` their bytes with NULs.

    ``generation`` is unique to each state of each node: equal means unchanged.
    """

    value: bytes
    perms: Perms
    generation: int
    children: dict[str, None] = field(default_factory=dict)
    names_size: int = 0

    @property
    def size(self) -> int:
        return len(self.value) + self.names_size

    def copy(self) -> Node:
        return Node(self.value, self.perms, self.generation, self.children.copy(), self.names_size)

    def add_child(self, leaf: str) -> None:
        if leaf not in self.children:
            self.children[leaf] = None
            self.names_size += len(leaf) + 1

    def drop_child(self, leaf: str) -> None:
        if leaf in self.children:
            del self.children[leaf]
            self.names_size -= len(leaf) + 1


class View(ABC):
    """The tree as somebody sees it: the store itself, or a transaction's idea of it.

    Nodes that :meth:`find` gives are for reading. A change checks its quotas before it changes anything.
    A transaction copies nodes at different times, so its view may be torn (a child that is listed and
    missing, or the reverse). It will not commit then, but until its end everything here must bear it.
    """

    @abstractmethod
    def find(self, path: str) -> Node | None: ...

    @abstractmethod
    def owned(self, domid: int) -> int:
        """How many nodes the domain owns."""

    @abstractmethod
    def next_generation(self) -> int: ...

    @abstractmethod
    def _edit(self, path: str) -> Node:
        """The existing node, to be changed; it has a new generation."""

    @abstractmethod
    def _insert(self, path: str, node: Node) -> None: ...

    @abstractmethod
    def _delete(self, path: str) -> None: ...

    @abstractmethod
    def _count(self, domid: int, change: int) -> None: ...

    def lookup(self, path: str, domid: int, need: int) -> Node:
        """The node, if ``domid`` has all of the rights ``need``.

        Raises ``XenError``: EACCES, or ENOENT if the nearest node above would let the domain know.
        """
        node = self.find(path)
        if node is not None:
            if permissions.rights(node.perms, domid) & need != need:
                raise XenError(EACCES, path)
            return node
        if not permissions.rights(self._nearest(path).perms, domid) & need:
            raise XenError(EACCES, path)
        raise XenError(ENOENT, path)

    def _nearest(self, path: str) -> Node:
        while (node := self.find(path := paths.parent(path))) is None:
            pass
        return node

    def readable(self, path: str, node: Node) -> tuple[Perms, Perms]:
        """The perms of which one must give READ to be told of a change of ``node``: its own, its parent's."""
        above = self.find(paths.parent(path))
        return node.perms, above.perms if above is not None else permissions.PRIVATE

    def write(self, path: str, value: bytes, quota: Quota) -> None:
        """Change the value of an existing node."""
        node = self.find(path)
        assert node is not None
        quota.check_node_size(len(value) + node.names_size)
        self._edit(path).value = value

    def create(self, path: str, value: bytes, creator: int, quota: Quota) -> None:
        """Make a node, and what is missing above it with empty values."""
        missing = [path]
        while (parent := self.find(above := paths.parent(missing[-1]))) is None:
            missing.append(above)
        quota.check_nodes(self.owned(creator), len(missing))
        quota.check_node_size(len(value))
        quota.check_node_size(parent.size + len(paths.name(missing[-1])) + 1)
        inherited = permissions.inherited(parent.perms, creator)
        for new in reversed(missing):
            self._edit(paths.parent(new)).add_child(paths.name(new))
            self._insert(new, Node(value if new == path else b"", inherited, self.next_generation()))
            self._count(inherited[0].domid, +1)

    def set_perms(self, path: str, perms: Perms) -> None:
        node = self._edit(path)
        self._count(node.perms[0].domid, -1)
        node.perms = perms
        self._count(perms[0].domid, +1)

    def remove(self, path: str) -> list[tuple[str, tuple[Perms, Perms]]]:
        """Remove a node (not the root) and all below. Returns each path removed, children before parents,
        with its :meth:`readable` perms of before."""
        order = []
        stack = [(path, self._leaves(path))]
        while stack:
            here, leaves = stack[-1]
            if (leaf := next(leaves, None)) is not None:
                below = paths.child(here, leaf)
                stack.append((below, self._leaves(below)))
                continue
            if (node := self.find(here)) is not None:
                order.append((here, self.readable(here, node)))
            stack.pop()
        for here, (own, _) in order:
            self._delete(here)
            self._count(own[0].domid, -1)
        if self.find(paths.parent(path)) is not None:
            self._edit(paths.parent(path)).drop_child(paths.name(path))
        return order

    def _leaves(self, path: str) -> Iterator[str]:
        node = self.find(path)
        return iter(node.children if node is not None else ())


class Store(View):
    """The real tree. It begins with the root and the two special nodes, all domain 0's."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._owned: Counter[int] = Counter()
        self._generation = 0
        for path in ("/", paths.INTRODUCE_DOMAIN, paths.RELEASE_DOMAIN):
            self.put(path, Node(b"", permissions.PRIVATE, self.next_generation()))

    def find(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def nodes(self) -> Iterator[tuple[str, Node]]:
        """All of them, for looking at; nothing may change meanwhile."""
        return iter(self._nodes.items())

    def owned(self, domid: int) -> int:
        return self._owned[domid]

    def next_generation(self) -> int:
        self._generation += 1
        return self._generation

    def put(self, path: str, node: Node | None) -> None:
        """Replace one entry by the outcome of a transaction; None deletes."""
        if (old := self._nodes.pop(path, None)) is not None:
            self._count(old.perms[0].domid, -1)
        if node is not None:
            node.generation = self.next_generation()
            self._nodes[path] = node
            self._count(node.perms[0].domid, +1)

    def _edit(self, path: str) -> Node:
        node = self._nodes[path]
        node.generation = self.next_generation()
        return node

    def _insert(self, path: str, node: Node) -> None:
        self._nodes[path] = node

    def _delete(self, path: str) -> None:
        del self._nodes[path]

    def _count(self, domid: int, change: int) -> None:
        self._owned[domid] += change
        if not self._owned[domid]:
            del self._owned[domid]
