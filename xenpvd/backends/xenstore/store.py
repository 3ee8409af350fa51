"""The tree: nodes by absolute path, and what can be done to them, in a transaction or not.

Paths come canonical (``path.canonical``). Everything walks by loops, so depth costs no stack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import EACCES, ENOENT
from typing import NamedTuple

from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.domain import Domain, Domains
from xenpvd.backends.xenstore.perms import Perms
from xenpvd.errors import XenError

#: Bytes that a node takes beside its path and what is in it, and that each of its permissions takes; as in
#: xenstored's accounts
NODE_HEADER = 24
PERM_SIZE = 8


@dataclass(slots=True)
class Node:
    """``children`` are leaf names in the order of their creation, ``names_size`` their bytes with NULs.

    ``generation`` is unique to each state of each node: equal means unchanged.
    """

    value: bytes
    perms: Perms
    generation: int
    #: the domain that made it what it is
    writer: int = 0
    children: dict[str, None] = field(default_factory=dict)
    names_size: int = 0

    @property
    def size(self) -> int:
        return len(self.value) + self.names_size

    def memory(self, path: str) -> int:
        """Bytes that its owner pays for it."""
        size = len(self.value) + self.names_size
        return NODE_HEADER + len(path) + PERM_SIZE * len(self.perms) + size

    def copy(self) -> Node:
        children = self.children.copy()
        return Node(self.value, self.perms, self.generation, self.writer, children, self.names_size)

    def add_child(self, leaf: str) -> None:
        if leaf not in self.children:
            self.children[leaf] = None
            self.names_size += len(leaf) + 1

    def drop_child(self, leaf: str) -> None:
        if leaf in self.children:
            del self.children[leaf]
            self.names_size -= len(leaf) + 1


class Change(NamedTuple):
    """What watches have to hear of: of this very path (``exact``), or of those above it as well.

    ``readers`` are the perms of which one must give READ to be told of it.
    """

    path: str
    exact: bool
    readers: tuple[Perms, ...]


class View(ABC):
    """The tree as somebody sees it: the store itself, or a transaction's idea of it.

    Nodes that :meth:`find` gives are for reading. A change checks the quotas of who makes it (``by``) and of
    who pays before it changes anything; domain 0's changes are never refused, whoever pays.
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
    def _touch(self, path: str) -> Node:
        """The existing node, to be changed."""

    def _edit(self, path: str, by: Domain) -> Node:
        """The existing node, to be changed; it has a new generation, and ``by`` for its writer."""
        node = self._touch(path)
        node.generation, node.writer = self.next_generation(), by.domid
        return node

    @abstractmethod
    def _insert(self, path: str, node: Node) -> None: ...

    @abstractmethod
    def _take(self, path: str) -> Node | None:
        """The node, if there is one, which is not there any more."""

    @abstractmethod
    def _payer(self, owner: int) -> Domain:
        """Whose memory the nodes of ``owner`` take."""

    @abstractmethod
    def _charge(self, owner: int, nodes: int, memory: int) -> None:
        """Count what ``owner`` has more now, or less."""

    def lookup(self, path: str, who: tuple[int, ...], need: int) -> Node:
        """The node, if ``who`` has all of the rights ``need``.

        Raises ``XenError``: EACCES, or ENOENT if the nearest node above would let the domain know.
        """
        node = self.find(path)
        if node is not None:
            if permissions.rights(node.perms, who) & need != need:
                raise XenError(EACCES, path)
            return node
        if not permissions.rights(self._nearest(path).perms, who) & need:
            raise XenError(EACCES, path)
        raise XenError(ENOENT, path)

    def _nearest(self, path: str) -> Node:
        """The node above that is there."""
        while (node := self.find(path := paths.parent(path))) is None:
            pass
        return node

    def readable(self, path: str, node: Node) -> tuple[Perms, Perms]:
        """The perms of which one must give READ to be told of a change of ``node``: its own, its parent's."""
        return node.perms, self.above(path)

    def writer(self, path: str) -> int:
        """Who has made it what it is; of a node that is missing, the one above."""
        return (self.find(path) or self._nearest(path)).writer

    def above(self, path: str) -> Perms:
        """The perms of the parent."""
        parent = self.find(paths.parent(path))
        return parent.perms if parent is not None else permissions.PRIVATE

    def write(self, path: str, value: bytes, by: Domain) -> None:
        """Change the value of an existing node."""
        node = self.find(path)
        assert node is not None
        owner, more = node.perms[0].domid, len(value) - len(node.value)
        by.quota.check_node_size(len(value) + node.names_size)
        self._check_memory(by, owner, more)
        self._edit(path, by).value = value
        self._charge(owner, 0, more)

    def create(self, path: str, value: bytes, by: Domain) -> None:
        """Make a node, and what is missing above it with empty values."""
        missing = [path]
        while (parent := self.find(above := paths.parent(missing[-1]))) is None:
            missing.append(above)
        inherited = permissions.inherited(parent.perms, by.domid)
        owner = inherited[0].domid
        nodes = {
            new: Node(value if new == path else b"", inherited, self.next_generation(), by.domid)
            for new in reversed(missing)
        }
        self._check_nodes(by, len(missing))
        by.quota.check_node_size(len(value))
        by.quota.check_node_size(parent.size + len(paths.name(missing[-1])) + 1)
        names = sum(len(paths.name(new)) + 1 for new in missing)
        self._check_memory(by, owner, names + sum(node.memory(new) for new, node in nodes.items()))
        for new, node in nodes.items():
            parent, leaf = self._edit(paths.parent(new), by), paths.name(new)
            parent.add_child(leaf)
            self._charge(parent.perms[0].domid, 0, len(leaf) + 1)
            self._insert(new, node)
            self._charge(owner, 1, node.memory(new))

    def set_perms(self, path: str, perms: Perms, by: Domain) -> None:
        node = self.find(path)
        assert node is not None
        more = PERM_SIZE * (len(perms) - len(node.perms))
        self._check_memory(by, perms[0].domid, more)
        node = self._edit(path, by)
        self._charge(node.perms[0].domid, -1, -node.memory(path))
        node.perms = perms
        self._charge(perms[0].domid, 1, node.memory(path))

    def _check_nodes(self, by: Domain, more: int) -> None:
        by.quota.check_nodes(self.owned(by.domid), more)

    def _check_memory(self, by: Domain, owner: int, more: int) -> None:
        if not by.privileged:
            self._payer(owner).check_memory(more)

    def remove(self, path: str, by: Domain) -> dict[str, Node]:
        """Remove a node (not the root) and all below. Returns what is gone, parents before children, the last
        child first: the other way round it is in the order of removal."""
        gone: dict[str, Node] = {}
        nodes, memory = Counter[int](), Counter[int]()
        stack = [path]
        while stack:
            here = stack.pop()
            if (node := self._take(here)) is None:
                continue
            gone[here] = node
            if node.children:
                stack += [f"{here}/{leaf}" for leaf in node.children]
            owner = node.perms[0].domid
            nodes[owner] += 1
            memory[owner] += node.memory(here)
        for owner, count in nodes.items():
            self._charge(owner, -count, -memory[owner])
        if self.find(above := paths.parent(path)) is not None:
            parent, leaf = self._edit(above, by), paths.name(path)
            if leaf in parent.children:
                self._charge(parent.perms[0].domid, 0, -len(leaf) - 1)
                parent.drop_child(leaf)
        return gone


class Store(View):
    """The real tree. It begins with the root and the two special nodes, all domain 0's."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains
        self._nodes: dict[str, Node] = {}
        self._generation = 0
        for path in ("/", paths.INTRODUCE_DOMAIN, paths.RELEASE_DOMAIN):
            self.put(path, Node(b"", permissions.PRIVATE, self.next_generation()))

    def __len__(self) -> int:
        """Nodes, the root and the special ones included."""
        return len(self._nodes)

    def find(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def nodes(self) -> Iterator[tuple[str, Node]]:
        """All of them, for looking at; nothing may change meanwhile."""
        return iter(self._nodes.items())

    def account(self, domid: int) -> Domain:
        return self._domains.of(domid)

    def owned(self, domid: int) -> int:
        return self._domains.of(domid).nodes

    def next_generation(self) -> int:
        self._generation += 1
        return self._generation

    def put(self, path: str, node: Node | None) -> None:
        """Replace one entry by the outcome of a transaction; None deletes."""
        if (old := self._nodes.pop(path, None)) is not None:
            self._charge(old.perms[0].domid, -1, -old.memory(path))
        if node is not None:
            node.generation = self.next_generation()
            self._nodes[path] = node
            self._charge(node.perms[0].domid, 1, node.memory(path))

    def release(self, domid: int, by: Domain) -> list[tuple[dict[str, Node], Perms]]:
        """Remove the nodes of a domain that is gone, with all below them, and its rights to others' nodes:
        the next domain of its number shall not have them, nor the blame for what this one wrote. Returns what
        each :meth:`remove` gave, with the perms of the parent."""
        had = []
        for path, node in self._nodes.items():
            if any(perm.domid == domid for perm in node.perms):
                had.append((path, node.perms))
            if node.writer == domid:
                node.writer = 0
        had.sort()  # what is above comes first, and takes with it what is below
        gone = []
        for path, perms in had:
            owner, *others = perms
            stays = path == "/" or path[0] == "@"
            if owner.domid == domid and not stays:
                if path in self._nodes:  # else it went with one above it
                    above = self.above(path)
                    gone.append((self.remove(path, by), above))
            elif path in self._nodes:
                owner = owner._replace(domid=0) if owner.domid == domid else owner
                self.set_perms(path, (owner, *(perm for perm in others if perm.domid != domid)), by)
        return gone

    def _touch(self, path: str) -> Node:
        return self._nodes[path]

    def _insert(self, path: str, node: Node) -> None:
        self._nodes[path] = node

    def _take(self, path: str) -> Node | None:
        return self._nodes.pop(path, None)

    def _payer(self, owner: int) -> Domain:
        return self.account(owner)

    def _charge(self, owner: int, nodes: int, memory: int) -> None:
        domain = self._domains.of(owner)
        domain.nodes += nodes
        domain.memory += memory
