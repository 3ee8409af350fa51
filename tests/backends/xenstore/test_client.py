from __future__ import annotations

import asyncio

import pytest

from xenpvd.backends.ops import XenstoreOps
from xenpvd.backends.xenstore.client import WAITING, Client
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.errors import XenstoreFault


@pytest.fixture
def client() -> Client:
    return Xenstore(lambda name, **data: None).client


def test_it_fits_its_door(client: Client):
    store: XenstoreOps = client
    store.mkdir("/a")


def test_reads_and_writes(client: Client):
    client.write("/a/b", "text é")
    client.write("/a/raw", b"\0\xff")
    client.mkdir("/a/c")
    assert client.read("/a/b") == "text é".encode()
    assert client.read("/a/raw") == b"\0\xff"
    assert client.directory("/a") == ["b", "raw", "c"]
    client.set_perms("/a", ["n1", "r0"])
    assert client.get_perms("/a") == ["n1", "r0"]
    client.remove("/a/b")
    client.remove("/a/b")
    assert client.directory("/a") == ["raw", "c"]
    assert client.directory("/a/c") == []


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (
            lambda c: c.read("/no"),
            "ENOENT",
            "cannot read /no in xenstore: No such file or directory (ENOENT).",
        ),
        (lambda c: c.write("/a//b", "x"), "EINVAL", "cannot write /a//b"),
        (lambda c: c.write("/a/é", "x"), "EINVAL", "cannot write"),
        (lambda c: c.write("/a\0b", "x"), "EINVAL", "cannot write"),
        (lambda c: c.write("/a/\ud800", "x"), "EINVAL", "cannot write"),
        (lambda c: c.write("/a", "\ud800"), "EINVAL", "cannot write"),
        (lambda c: c.write("/a", bytes(4094)), "E2BIG", "cannot write"),
        (lambda c: c.remove("/no/no"), "ENOENT", "cannot remove"),
        (lambda c: c.remove("/"), "EINVAL", "cannot remove"),
        (lambda c: c.directory("/no"), "ENOENT", "cannot list"),
        (lambda c: c.set_perms("/", ["x0"]), "EINVAL", "cannot set the permissions of"),
        (lambda c: c.watch("/a/"), "EINVAL", "cannot watch"),
    ],
)
def test_refusals_say_what_and_why(client: Client, use, error: str, message: str):
    with pytest.raises(XenstoreFault) as caught:
        use(client)
    assert caught.value.data["error"] == error
    assert message in str(caught.value)


def test_the_longest_value(client: Client):
    client.write("/a", bytes(4093))
    assert client.read("/a") == bytes(4093)


def test_long_directories(client: Client):
    names = [f"{'n' * 50}{i}" for i in range(300)]
    for name in names:
        client.mkdir(f"/dir/{name}")
    assert client.directory("/dir") == names


def test_a_transaction_commits(client: Client):
    with client.transaction() as transaction:
        transaction.write("/a", "1")
        transaction.mkdir("/b")
        assert transaction.read("/a") == b"1"
        with pytest.raises(XenstoreFault):
            client.read("/a")
    assert client.read("/a") == b"1"


def test_an_exception_drops_the_transaction(client: Client):
    with pytest.raises(KeyError):
        with client.transaction() as transaction:
            transaction.write("/a", "1")
            raise KeyError
    assert client.directory("/") == []


def test_a_conflict_is_told(client: Client):
    with pytest.raises(XenstoreFault, match=r"cannot end the transaction.*do it all again"):
        with client.transaction() as transaction:
            transaction.write("/a", "1")
            client.write("/a", "2")


async def take(watch, count: int) -> list[str]:
    return [await asyncio.wait_for(anext(watch), 5) for _ in range(count)]


async def test_a_watch_fires_at_once_and_merges_what_waits(client: Client):
    watch = client.watch("/a")
    client.write("/a/x", "1")
    client.write("/a/y", "1")
    client.write("/a/x", "2")
    client.write("/b", "1")
    assert await take(watch, 3) == ["/a", "/a/x", "/a/y"]
    client.write("/a/x", "3")
    assert await take(watch, 1) == ["/a/x"]
    watch.close()


async def test_a_waiting_reader_is_woken(client: Client):
    watch = client.watch("/a")
    await take(watch, 1)
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(take(watch, 1))
        await asyncio.sleep(0)
        client.write("/a", "1")
    assert reader.result() == ["/a"]
    watch.close()


async def test_closing_ends_the_iteration(client: Client):
    watch = client.watch("/a")
    seen = []
    async for path in watch:
        seen.append(path)
        watch.close()
        watch.close()
    assert seen == ["/a"]
    client.write("/a", "1")
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_closing_wakes_a_waiting_reader(client: Client):
    async def read_all() -> list[str]:
        return [path async for path in watch]

    watch = client.watch("/a")
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read_all())
        await asyncio.sleep(0)
        watch.close()
    assert reader.result() == ["/a"]


async def test_two_watches_of_one_path(client: Client):
    one, two = client.watch("/a"), client.watch("/a")
    await take(one, 1)
    one.close()
    client.write("/a/b", "1")
    assert await take(two, 2) == ["/a", "/a/b"]


async def test_what_waits_is_bounded(client: Client):
    watch = client.watch("/a")
    for n in range(WAITING + 10):
        client.mkdir(f"/a/{n}")
    paths = await take(watch, 5)
    assert paths[0] == "/a"  # anything below may have changed
    assert len(watch._paths) < WAITING
