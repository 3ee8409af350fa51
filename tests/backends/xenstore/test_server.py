"""The public face, with guests at the other end of real rings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.page import FakePage
from tests.fakes.xenstore_frontend import XenstoreFrontend, request
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.backends.xenstore.wire import Message
from xenpvd.errors import XenstoreFault


class Host:
    """A store and the guests on it."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[str] = []
        self.xenstore = Xenstore(
            lambda name, **data: self.published.append((name, data)),
            on_fault=lambda name, fault: self.faults.append(name),
        )
        self.client = self.xenstore.client
        self.ports: list[FakeEvtchnPort] = []

    def boot(self, domid: int, on_request=None) -> XenstoreFrontend:
        port = FakeEvtchnPort()
        self.ports.append(port)
        guest = XenstoreFrontend(FakePage(), port)
        self.xenstore.connect(domid, guest.page, port, on_request)
        if not self.xenstore.exists(f"/local/domain/{domid}/data"):
            self.client.mkdir(f"/local/domain/{domid}/data")
            self.client.set_perms(f"/local/domain/{domid}/data", [f"n{domid}"])
        return guest


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    yield host
    for domid in (1, 2):
        await host.xenstore.disconnect(domid)
    for port in host.ports:
        port.close()


async def test_a_guest_and_domain_0_share_the_tree(host: Host):
    guest = host.boot(1)
    assert await guest.ask(abi.XS_WRITE, b"data/x\0value") == b"OK\0"
    assert host.client.read("/local/domain/1/data/x") == b"value"
    host.client.write("/local/domain/1/data/x", "other")
    assert await guest.ask(abi.XS_READ, b"data/x\0") == b"other"


async def test_watches_cross(host: Host):
    guest = host.boot(1)
    watch = host.client.watch("/local/domain/1/data")
    assert await anext(watch) == "/local/domain/1/data"
    await guest.ask(abi.XS_WATCH, b"data/y\0t\0")
    assert await guest.event() == ("data/y", "t")
    await guest.ask(abi.XS_WRITE, b"data/x\0value")
    assert await anext(watch) == "/local/domain/1/data/x"
    host.client.write("/local/domain/1/data/y", "1")
    assert await guest.event() == ("data/y", "t")


async def test_requests_are_announced(host: Host):
    requests: list[int] = []
    guest = host.boot(1, on_request=lambda: requests.append(len(requests)))
    assert requests == []
    await guest.ask(abi.XS_READ, b"no\0")
    assert requests == [0]


async def test_introduce_and_release_are_told(host: Host):
    introduce, release = host.client.watch("@introduceDomain"), host.client.watch("@releaseDomain")
    assert [await anext(introduce), await anext(release)] == ["@introduceDomain", "@releaseDomain"]
    host.boot(1)
    assert await anext(introduce) == "@introduceDomain"
    await host.xenstore.disconnect(1)
    assert await anext(release) == "@releaseDomain"
    await host.xenstore.disconnect(1)
    assert not release._paths


async def test_a_domain_is_connected_once(host: Host):
    host.boot(1)
    for domid in (0, 1):
        with pytest.raises(ValueError, match="is connected"):
            host.xenstore.connect(domid, FakePage(), FakeEvtchnPort())


async def test_a_reboot_drops_the_connection_and_what_was_the_guests(host: Host):
    guest = host.boot(1)
    await guest.ask(abi.XS_WRITE, b"data/x\0value")
    host.client.write("/local/domain/1/mine", "kept")
    host.client.write("/local/domain/1/mine/theirs", "")
    host.client.set_perms("/local/domain/1/mine/theirs", ["n0", "r2", "b1"])
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.event()
    await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    await host.xenstore.disconnect(1)
    guest = host.boot(1)
    assert await guest.ask(abi.XS_READ, b"data/x\0", tx_id=1) == "ENOENT"
    assert await guest.ask(abi.XS_READ, b"data/x\0") == "ENOENT"
    assert host.client.read("/local/domain/1/mine") == b"kept"
    assert host.client.get_perms("/local/domain/1/mine/theirs") == ["n0", "r2"]
    host.client.write("/local/domain/1/data/x", "other")
    assert await guest.ask(abi.XS_READ, b"data/x\0") == b"other"
    assert guest.events == []


async def test_a_guests_fault_ends_its_connection_only(host: Host):
    bad, good = host.boot(1), host.boot(2)
    await bad.ask(abi.XS_WATCH, b"data\0t\0")
    await bad.event()
    assert host.xenstore._state.domains.of(1).watches == 1
    bad.page.store32(abi.REQ_PROD, 5000)
    bad.port.guest_kick()
    await bad.port.guest_wait()
    assert bad.page.load32(abi.ERROR) == abi.XENSTORE_ERROR_RINGIDX
    assert [(name, data["domid"]) for name, data in host.published] == [("xenstore.fault", 1)]
    assert "req_prod" in host.published[0][1]["why"]
    assert host.faults == []
    assert host.xenstore._state.domains.of(1).watches == 0
    assert await good.ask(abi.XS_READ, b"data\0") == b""
    before = bad.page.load32(abi.RSP_PROD)
    host.client.write("/local/domain/1/data", "x")
    assert await good.ask(abi.XS_READ, b"data\0") == b""
    assert bad.page.load32(abi.RSP_PROD) == before
    await host.xenstore.disconnect(1)
    assert await host.boot(1).ask(abi.XS_READ, b"data\0") == b""


async def test_our_own_fault_is_owned(host: Host, monkeypatch: pytest.MonkeyPatch, caplog):
    def broken(state, connection, message):
        raise ZeroDivisionError

    guest = host.boot(1)
    monkeypatch.setattr("xenpvd.backends.xenstore.server.call", broken)
    guest.put(b"\2\0\0\0" + bytes(12))
    while not host.faults:
        await guest.port.guest_wait()
    assert guest.page.load32(abi.ERROR) == abi.XENSTORE_ERROR_COMM
    assert host.faults == ["xenstore-1"]
    assert "internal error" in host.published[0][1]["why"]
    assert "ZeroDivisionError" in caplog.text


def test_tree():
    xenstore = Xenstore(lambda name, **data: None)
    xenstore.client.write("/a/b/c", b"\xff")
    xenstore.client.write("/a/d", "text")
    xenstore.client.set_perms("/a/d", ["n1", "r2"])
    assert [node.path for node in xenstore.tree("/")] == ["/", "/a", "/a/b", "/a/b/c", "/a/d"]
    assert [node.path for node in xenstore.tree("/a", 1)] == ["/a", "/a/b", "/a/d"]
    (node,) = xenstore.tree("/a/d", 0)
    assert (node.value, node.base64, node.perms) == ("text", None, ("n1", "r2"))
    (node,) = xenstore.tree("/a/b/c")
    assert (node.value, node.base64) == ("\ufffd", "/w==")
    assert xenstore.exists("/a/b")
    assert not xenstore.exists("/b")
    with pytest.raises(XenstoreFault, match=r"cannot list /b in xenstore: .*ENOENT"):
        xenstore.tree("/b", 1)


def test_a_large_tree_goes_quickly():
    """10,000 nodes below one: creation, listing and removal are linear (else this takes minutes)."""
    xenstore = Xenstore(lambda name, **data: None)
    for n in range(10_000):
        xenstore.client.mkdir(f"/a/{n}")
    assert len(list(xenstore.tree("/a"))) == 10_001
    xenstore.client.remove("/a")
    assert not xenstore.exists("/a/9999")


async def test_who_removes_can_wait_until_the_guest_has_looked(host: Host):
    client = host.client
    assert not await client.looked_at("/local/domain/1/device/vbd/1", 5)  # at once: there is no guest
    guest = host.boot(1)
    await guest.ask(abi.XS_READ, b"data\0")
    looked = asyncio.gather(client.looked_at("/local/domain/1/device/vbd/1", 5))
    assert await guest.ask(abi.XS_READ, b"device/vbd/2\0") == "EACCES"  # another path
    assert await guest.ask(abi.XS_DIRECTORY, b"device/vbd/1\0") == "EACCES"
    assert await looked == [True]
    assert not await client.looked_at("/local/domain/1/device/vbd/1", 0.01)
    assert not client.looks


async def test_domain_0_can_release_a_guest_and_introduce_it_anew(host: Host):
    """F18: the ring is served no more, then from its beginning."""
    guest = host.boot(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    assert await guest.event() == ("data", "t")
    answers: list[Message] = []
    tool = host.xenstore.open(0, "a tool", answers.append)
    released = host.client.watch("@releaseDomain")
    assert await anext(released) == "@releaseDomain"
    tool.call(Message(abi.XS_RELEASE, 1, 0, b"1\0"))
    assert await anext(released) == "@releaseDomain"
    guest.put(request(abi.XS_READ, b"data\0"))
    host.client.write("/local/domain/1/data", "unheard")
    host.client.set_perms("/local/domain/1/data", ["n1"])
    for _ in range(20):
        await asyncio.sleep(0)
    assert guest.take() == b""
    tool.call(Message(abi.XS_INTRODUCE, 2, 0, b"1\x001\x001\0"))
    assert [answer.payload for answer in answers] == [b"OK\0"] * 2
    assert await guest.ask(abi.XS_READ, b"data\0") == b"unheard"
    tool.call(Message(abi.XS_RELEASE, 3, 0, b"1\0"))
    await host.xenstore.disconnect(1)
    assert await host.boot(1).ask(abi.XS_READ, b"data\0") == b""
    tool.close()


async def test_who_is_cut_off_while_events_go_out_gets_none(host: Host):
    """As a client of the socket that does not read: it ends in the midst of a delivery."""

    def leave(message: Message) -> None:
        if message.payload != b"OK\0":
            session.close()

    session = host.xenstore.open(0, "a tool", leave)
    for token in (b"one", b"two"):
        session.call(Message(abi.XS_WATCH, 1, 0, b"/a\0" + token + b"\0"))
    host.client.write("/a", "1")
    session.close()
    host.client.write("/a", "2")


async def test_a_quota_set_while_the_guest_runs_counts_at_once_and_survives_its_reboot(host: Host):
    guest = host.boot(1)
    tool = host.xenstore.open(0, "a tool", lambda message: None)
    tool.call(Message(abi.XS_SET_QUOTA, 1, 0, b"1\0nodes\x003\0"))
    answers = [await guest.ask(abi.XS_WRITE, b"data/%d\0" % n) for n in range(3)]
    assert answers == [b"OK\0", b"OK\0", "ENOSPC"]
    await host.xenstore.disconnect(1)
    guest = host.boot(1)
    assert [await guest.ask(abi.XS_WRITE, b"data/%d\0" % n) for n in range(3)] == answers


async def test_a_domain_on_sockets_is_released_and_introduced_anew(host: Host):
    host.xenstore.introduce(5)
    answers: list[Message] = []
    ended: list[int] = []
    session = host.xenstore.open(5, "pid 1", answers.append, lambda: ended.append(5))
    session.call(Message(abi.XS_WATCH, 1, 0, b"x\0t\0"))
    tool = host.xenstore.open(0, "a tool", answers.append)
    tool.call(Message(abi.XS_RELEASE, 1, 0, b"5\0"))
    assert ended == [5]
    session.close()
    with pytest.raises(ValueError, match="is released"):
        host.xenstore.open(5, "pid 2", answers.append)
    tool.call(Message(abi.XS_INTRODUCE, 2, 0, b"5\x001\x001\0"))
    assert answers[-1].payload == b"OK\0"
    host.xenstore.open(5, "pid 2", answers.append).close()
    tool.close()


async def test_two_wait_for_one_look(host: Host):
    guest = host.boot(1)
    both = asyncio.gather(
        host.client.looked_at("/local/domain/1/data", 0.01), host.client.looked_at("/local/domain/1/data", 5)
    )
    await asyncio.sleep(0.02)  # the first one's time is over then
    await guest.ask(abi.XS_READ, b"data\0")
    assert await both == [False, True] and not host.client.looks
