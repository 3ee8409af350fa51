"""Random clients against the model: every answer, every event, every account (J6, and G to K at once)."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.backends.xenstore.model import Answer, Limits, Transaction, Tree, above, wire
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.call import call
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.request import State
from xenpvd.backends.xenstore.wire import Message

TYPES = {
    "read": abi.XS_READ,
    "directory": abi.XS_DIRECTORY,
    "get_perms": abi.XS_GET_PERMS,
    "write": abi.XS_WRITE,
    "mkdir": abi.XS_MKDIR,
    "remove": abi.XS_RM,
    "set_perms": abi.XS_SET_PERMS,
}
CHANGES = ("write", "mkdir", "remove", "set_perms")
LIMITS = Limits()

WHO = st.sampled_from([0, 1, 1, 2])
PATHS = st.sampled_from([f"/{top}{below}" for top in ("g1", "g2", "b") for below in ("", "/x", "/x/y", "/z")])
PERMS = st.lists(st.tuples(st.sampled_from("nrwb"), st.integers(0, 2)), min_size=1, max_size=3)


@dataclass
class Client:
    connection: Connection
    watches: dict[tuple[str, str], int | None] = field(default_factory=dict)  # with their depth
    transactions: dict[int, Transaction] = field(default_factory=dict)


class Clients(RuleBasedStateMachine):
    """Domain 0 and two guests, each with a tree of its own and one in common."""

    @initialize()
    def begin(self) -> None:
        self.state = State()
        self.tree = Tree()
        self.clients = [Client(Connection(self.state.domains.of(domid))) for domid in range(3)]
        for name, limit in (
            ("nodes", LIMITS.nodes),
            ("watches", LIMITS.watches),
            ("transactions", LIMITS.transactions),
            ("node-size", LIMITS.node_size),
        ):
            self.state.domains.set_quota(name, limit)
        for path, perms in (("/g1", [("n", 1)]), ("/g2", [("r", 2)]), ("/b", [("b", 0)])):
            self.plain(0, "mkdir", path, b"")
            self.plain(0, "set_perms", path, wire(perms))

    def ask(
        self, who: int, type_: int, payload: bytes, tx: int = 0
    ) -> tuple[Answer, list[tuple[int, str, str]]]:
        """The answer; and who hears which path by which token, in order."""
        deliveries = list(call(self.state, self.clients[who].connection, Message(type_, 5, tx, payload)))
        replies = [m for c, m in deliveries if m.type != abi.XS_WATCH_EVENT]
        assert len(replies) == 1 and replies[0][1:3] == (5, tx) and replies[0].type in (type_, abi.XS_ERROR)
        heard = []
        for connection, message in deliveries:
            if message.type == abi.XS_WATCH_EVENT:
                path, token = message.payload.decode().split("\0")[:2]
                heard.append((connection.domain.domid, path, token))
        payload = replies[0].payload
        return (payload[:-1].decode() if replies[0].type == abi.XS_ERROR else payload), heard

    def listeners(self, path: str, exact: bool, before: Tree, after: Tree) -> list[tuple[int, str, str]]:
        """Who hears of ``path``, sorted: clients' watches mix in the order of registration."""
        heard = []
        for domid, client in enumerate(self.clients):
            if not (before.hears(path, domid) or after.hears(path, domid)):
                continue
            for (watched, token), depth in client.watches.items():
                levels = path.count("/") - watched.count("/")
                inside = path == watched or (not exact and path.startswith(f"{watched}/"))
                if inside and (depth is None or levels <= depth):
                    heard.append((domid, path, token))
        return sorted(heard)

    def plain(self, who: int, operation: str, path: str, rest: bytes) -> None:
        before = self.tree.copy()
        expected = self.tree.do(operation, path, rest, who, LIMITS)
        answer, heard = self.ask(who, TYPES[operation], path.encode() + b"\0" + rest)
        if operation == "directory" and isinstance(answer, bytes):
            answer = b"".join(sorted(name + b"\0" for name in answer.split(b"\0")[:-1]))
        assert answer == expected, (operation, path, rest, who)
        told: list[tuple[int, str, str]] = []
        if operation in CHANGES and expected == b"OK\0":
            gone = sorted(set(before.nodes) - set(self.tree.nodes))
            for each in gone:
                told += self.listeners(each, each != path, before, self.tree)
            if not gone and path in self.tree.nodes and not (operation == "mkdir" and path in before.nodes):
                told += self.listeners(path, False, before, self.tree)
        assert sorted(heard) == sorted(told), (operation, path, rest, who)

    # ---- what clients do

    @rule(
        who=WHO, operation=st.sampled_from(["read", "directory", "get_perms", "mkdir", "remove"]), path=PATHS
    )
    def simple(self, who: int, operation: str, path: str) -> None:
        self.plain(who, operation, path, b"")

    @rule(who=WHO, path=PATHS, value=st.sampled_from([b"", b"1", b"\0\xff", b"x" * 24, b"x" * 25]))
    def write(self, who: int, path: str, value: bytes) -> None:
        self.plain(who, "write", path, value)

    @rule(who=WHO, path=PATHS, perms=PERMS)
    def set_perms(self, who: int, path: str, perms: list[tuple[str, int]]) -> None:
        self.plain(who, "set_perms", path, wire(perms))

    @rule(who=WHO, path=PATHS, token=st.sampled_from("tu"), depth=st.sampled_from([None, None, 0, 1]))
    def watch(self, who: int, path: str, token: str, depth: int | None) -> None:
        watches = self.clients[who].watches
        expected: Answer = b"OK\0"
        if (path, token) in watches:
            expected = "EEXIST"
        elif who and len(watches) > LIMITS.watches:
            expected = "E2BIG"
        more = "" if depth is None else f"{depth}\0"
        answer, heard = self.ask(who, abi.XS_WATCH, f"{path}\0{token}\0{more}".encode())
        assert answer == expected
        if expected == b"OK\0":
            watches[path, token] = depth
            assert heard == [(who, path, token)], "at once, whether there is such a node or not"
        else:
            assert heard == []

    @rule(who=WHO, path=PATHS, token=st.sampled_from("tu"))
    def unwatch(self, who: int, path: str, token: str) -> None:
        known = (path, token) in self.clients[who].watches
        self.clients[who].watches.pop((path, token), None)
        answer, _ = self.ask(who, abi.XS_UNWATCH, f"{path}\0{token}\0".encode())
        assert answer == (b"OK\0" if known else "ENOENT")

    @rule(who=WHO)
    def reset(self, who: int) -> None:
        assert self.ask(who, abi.XS_RESET_WATCHES, b"")[0] == b"OK\0"
        self.clients[who].watches.clear()
        self.clients[who].transactions.clear()

    # ---- transactions

    @rule(who=WHO)
    def start(self, who: int) -> None:
        mine = self.clients[who].transactions
        answer, _ = self.ask(who, abi.XS_TRANSACTION_START, b"\0")
        if who and len(mine) > LIMITS.transactions:
            assert answer == "ENOSPC"
        else:
            assert isinstance(answer, bytes)
            mine[int(answer[:-1])] = Transaction(who, self.tree.changes)

    def some(self, data: st.DataObject) -> tuple[int, int, Transaction]:
        known = [(who, tx, t) for who, c in enumerate(self.clients) for tx, t in c.transactions.items()]
        return data.draw(st.sampled_from(known))

    def any_open(self) -> bool:
        return any(client.transactions for client in self.clients)

    @precondition(any_open)
    @rule(
        data=st.data(),
        operation=st.sampled_from([*TYPES]),
        path=PATHS,
        perms=PERMS,
        value=st.binary(max_size=2),
    )
    def inside(
        self, data: st.DataObject, operation: str, path: str, perms: list[tuple[str, int]], value: bytes
    ) -> None:
        who, tx, transaction = self.some(data)
        rest = wire(perms) if operation == "set_perms" else value if operation == "write" else b""
        answer, heard = self.ask(who, TYPES[operation], path.encode() + b"\0" + rest, tx)
        assert heard == [], "K7: not before its end"
        transaction.operations.append((operation, path, rest, answer))
        transaction.failed |= answer == "ENOSPC"

    @precondition(any_open)
    @rule(data=st.data(), verdict=st.sampled_from([b"T", b"T", b"F"]))
    def finish(self, data: st.DataObject, verdict: bytes) -> None:
        who, tx, transaction = self.some(data)
        del self.clients[who].transactions[tx]
        answer, heard = self.ask(who, abi.XS_TRANSACTION_END, verdict + b"\0", tx)
        if answer == b"OK\0" and verdict == b"T":
            self.redo(transaction, heard)
            return
        assert heard == []
        if verdict == b"F":
            assert answer == b"OK\0"
        elif answer == "ENOMEM":
            assert transaction.failed
        else:
            assert answer in ("EAGAIN", "ENOSPC"), answer
            assert self.tree.changes > transaction.changes, "nobody else has changed anything"

    def redo(self, transaction: Transaction, heard: list[tuple[int, str, str]]) -> None:
        """It was as if all of it had been done now, in one go."""
        assert not transaction.failed
        before = self.tree.copy()
        paths = set()
        for operation, path, rest, answer in transaction.operations:
            expected = self.tree.do(operation, path, rest, transaction.domid, None)
            if operation == "directory" and isinstance(answer, bytes):
                answer = b"".join(sorted(name + b"\0" for name in answer.split(b"\0")[:-1]))
            assert answer == expected, (operation, path, rest)
            if operation in CHANGES and expected == b"OK\0":
                paths.add(path)
                paths |= {each for each in before.nodes if each.startswith(f"{path}/")}
                paths |= {each for each in self.tree.nodes if each.startswith(f"{path}/")}
        assert {path for _, path, _ in heard} <= paths, "of what it has changed"
        for path in paths:
            if (path in before.nodes) != (path in self.tree.nodes) or (
                path in before.nodes and before.nodes[path] != self.tree.nodes[path]
            ):
                for listener in self.listeners(path, True, before, self.tree):
                    created = path not in before.nodes
                    if not created or path in {p for _, p, _, _ in transaction.operations}:
                        assert listener in heard, listener

    # ---- what holds always

    @invariant()
    def the_tree_is_the_models(self) -> None:
        if not hasattr(self, "tree"):
            return
        found = {path: node for path, node in self.state.store.nodes() if path[0] == "/"}
        assert found.keys() == self.tree.nodes.keys()
        for path, node in self.tree.nodes.items():
            assert found[path].value == node.value
            assert [("nrwb"[perm.rights], perm.domid) for perm in found[path].perms] == node.perms
            assert sorted(found[path].children) == sorted(self.tree.children(path))
            assert path == "/" or above(path) in found

    @invariant()
    def the_accounts_are_right(self) -> None:
        if not hasattr(self, "tree"):
            return
        for domid in (1, 2):
            domain, client = self.state.domains.of(domid), self.clients[domid]
            assert domain.nodes == self.tree.owned(domid)
            assert domain.watches == len(client.watches)
            assert domain.transactions == len(client.transactions)
            if not client.transactions:
                nodes = (n.memory(p) for p, n in self.state.store.nodes() if n.perms[0].domid == domid)
                watches = sum(len(path) + len(token) for path, token in client.watches)
                assert domain.memory == sum(nodes) + watches

    def teardown(self) -> None:
        if not hasattr(self, "tree"):
            return
        for client in self.clients:
            self.state.reset(client.connection)
            domain = client.connection.domain
            assert (domain.watches, domain.transactions) == (0, 0)
            client.watches.clear()
            client.transactions.clear()
        self.the_accounts_are_right()


TestClients = Clients.TestCase
TestClients.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
