"""Guests as they lie in the runtime directory: those that answer, those that do not, and what is none."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from tests.client.conftest import HELLO, impostor
from tests.gateway.conftest import Host
from xenpvd.client.errors import Unreachable
from xenpvd.errors import HostError, LimitReached, NotFound, PermissionRefused
from xenpvd.gateway import guests as module
from xenpvd.gateway.guests import PER_GUEST_MAX, Guest, Guests
from xenpvd.views import Runstate


@pytest.fixture
def guests(host: Host, monkeypatch: pytest.MonkeyPatch) -> Guests:
    monkeypatch.setattr(module, "FRESH", -1.0)
    return Guests(host.run_dir)


async def test_one_that_answers(guests: Guests) -> None:
    assert await guests.look() == [
        Guest(name="web1", state="running", vcpus=1, memory_mib=512, uptime=192.4, drives=[])
    ]


async def test_one_that_comes_and_goes(guests: Guests, host: Host) -> None:
    (await host.start("web2")).state = Runstate.PAUSED
    assert [(guest.name, guest.state) for guest in await guests.look()] == [
        ("web1", "running"),
        ("web2", "paused"),
    ]
    await host.stop("web1")
    assert [guest.name for guest in await guests.look()] == ["web2"], "its folder is still there"
    await host.start("web1")
    assert [guest.name for guest in await guests.look()] == ["web1", "web2"]


async def test_those_that_hang_hold_up_nobody(
    guests: Guests, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One accepts nothing, one greets and then says no more."""
    monkeypatch.setattr(module, "LOOK", 0.3)
    (host.run_dir / "deaf").mkdir()
    (host.run_dir / "dumb").mkdir()
    gate = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await gate.wait()

    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(host.run_dir / "deaf/rpc-ro.sock"))
        deaf.listen(0)
        async with impostor(host.run_dir / "dumb/rpc-ro.sock", greet), asyncio.timeout(3):
            found = await guests.look()
            gate.set()
    assert [(guest.name, guest.state) for guest in found] == [
        ("deaf", None),
        ("dumb", None),
        ("web1", "running"),
    ]
    assert found[0].why is not None and "does not answer within 0.3 s" in found[0].why
    assert found[1].why == "it does not answer within 0.3 s"


async def test_one_that_is_dead(guests: Guests, host: Host) -> None:
    (host.run_dir / "dead").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(host.run_dir / "dead/rpc-ro.sock"))
    why = (await guests.look())[0].why
    assert why is not None and "its daemon is dead" in why and "/proc" not in why


@pytest.mark.parametrize(
    "answer", [b"[]\n", b'{"id":0,"result":[]}\n', b'{"id":0,"result":{"state":7}}\n{"id":0,"result":[]}\n']
)
async def test_one_that_lies(guests: Guests, host: Host, answer: bytes) -> None:
    (host.run_dir / "liar").mkdir()
    gate = asyncio.Event()

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + answer + answer)
        await gate.wait()

    async with impostor(host.run_dir / "liar/rpc-ro.sock", lie):
        liar = (await guests.look())[0]
        gate.set()
    assert liar.state is None and liar.why is not None


async def test_figures_that_would_spoil_the_others(guests: Guests, host: Host) -> None:
    """A hostile daemon can be somebody else by name, write lines of its own, or be slow."""
    labels = {"liar": {'a="b"} 1\nxenpvd_up{x': "7"}, "other": {"guest": "web1"}}
    for name in ("liar", "other", "broken"):
        (await host.start(name)).labels = labels.get(name, {})
    host.services["broken"].faults["guest_stats"] = ZeroDivisionError()
    host.services["other"].config = host.services["web1"].config
    found = await guests.stats(["web1", "liar", "other", "broken", "missing"])
    assert [stats.name for stats in found] == ["web1"]
    host.services["other"].labels = {}
    assert [stats.name for stats in await guests.stats(["other"])] == ["other"]


async def test_what_is_no_guest(guests: Guests, host: Host, tmp_path: Path) -> None:
    (host.run_dir / "No Name").mkdir()
    (host.run_dir / "file").write_text("")
    (host.run_dir / "link").symlink_to(host.run_dir / "web1")
    assert [guest.name for guest in await guests.look()] == ["web1"]
    for name in ("..", "", "web1/../web1", "No Name", "missing"):
        with pytest.raises(NotFound):
            async with guests.connect(name, "admin"):
                pass
    assert await Guests(tmp_path / "missing").look() == []
    with pytest.raises(HostError, match="Not a directory"):
        await Guests(host.run_dir / "file").look()


async def test_a_socket_is_no_link_to_anothers(guests: Guests, host: Host) -> None:
    """A hostile daemon must not make us speak to another guest's for somebody who may use its own only."""
    (host.run_dir / "evil").mkdir()
    for name in ("rpc.sock", "rpc-ro.sock"):
        (host.run_dir / "evil" / name).symlink_to(host.run_dir / "web1" / name)
    with pytest.raises(Unreachable, match="is no socket"):
        async with guests.connect("evil", "admin"):
            pass
    assert [guest.state for guest in await guests.look()] == [None, "running"]


async def test_viewers_are_viewers_for_the_daemon_too(guests: Guests) -> None:
    for role, granted in (("viewer", "viewer"), ("operator", "admin"), ("admin", "admin")):
        async with guests.connect("web1", role) as wire:  # type: ignore[arg-type]
            assert wire.hello["role"] == granted
    assert guests.connections == 0


async def test_without_permission(guests: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionRefused, match=r"no permission for .*/web1/rpc\.sock"):
        async with guests.connect("web1", "admin"):
            pass


async def test_the_host_keeps_connections_of_its_own(guests: Guests) -> None:
    opened = [guests.connect("web1", "admin") for _ in range(PER_GUEST_MAX)]
    for one in opened:
        await one.__aenter__()
    with pytest.raises(LimitReached):
        async with guests.connect("web1", "admin"):
            pass
    async with guests.connect("web1", "viewer"):
        assert guests.connections == PER_GUEST_MAX + 1
    for one in opened:
        await one.__aexit__(None, None, None)
    async with guests.connect("web1", "admin"):
        assert guests.connections == 1


async def test_many_who_look_are_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    guests, asked = Guests(host.run_dir), []
    look = guests._look

    async def count(name: str) -> Guest | None:
        asked.append(name)
        return await look(name)

    monkeypatch.setattr(guests, "_look", count)
    found = await asyncio.gather(*(guests.look() for _ in range(50)))
    assert asked == ["web1"] and all(one == found[0] for one in found)
