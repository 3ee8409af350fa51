"""The front door: where a guest is found, what its methods are, and how it survives its daemon."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.conftest import Daemon, Naps, until
from tests.fakes.service import FakeService
from xenpvd.client import Closed, ConnectionLost, Guest, Retry, RpcError, Unreachable, connect
from xenpvd.client.methods import STREAMING, WAITING
from xenpvd.errors import BadConfig, Exists, NotFound, StateError, TimedOut, Unsupported
from xenpvd.rpc.methods import METHODS
from xenpvd.tasks import Tasks


async def test_by_name_and_by_path(
    daemon: Daemon, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(path) as guest:
        assert guest.hello["guest"] == "web1"
    async with connect("web1", run_dir=tmp_path) as guest:
        assert guest.path == path
    monkeypatch.setenv("XENPVD_RUN_DIR", str(tmp_path))
    async with connect("web1") as guest:
        assert guest.path == path
    with pytest.raises(Unreachable, match=r"web2/rpc\.sock: it is missing"):
        async with connect("web2"):
            pass
    monkeypatch.delenv("XENPVD_RUN_DIR")
    monkeypatch.setattr("xenpvd.paths.run_dir", lambda: Path("/nowhere"))
    assert connect("web1").path == Path("/nowhere/web1/rpc.sock")
    with pytest.raises(NotFound, match=r"no guest can be called '\.\./x'"):
        connect("../x")


async def test_methods_with_types(guest: Guest, service: FakeService) -> None:
    added = await guest.drive_add(vdev="xvdb", target="/srv/b.img", access="ro")
    assert added["changed"] and added["drive"]["access"] == "ro"
    assert [drive["vdev"] for drive in await guest.drive_list()] == ["xvdb"]
    assert (await guest.guest_wait(for_="devices", timeout=3))["state"] == "running"
    assert (await guest.evtchn_list())[0]["remote-domain"] == "0"
    assert await guest.drive_flush(vdev="xvdb") is None
    found = await guest.console_wait(regex="^(?:a|())", since=0)
    assert found["groups"] == [""]
    steps = await guest.xenstore_transaction(steps=[{"op": "read", "path": "/tool/name"}])
    assert steps[0]["text"] == "web1"


async def test_any_method_by_name(guest: Guest) -> None:
    assert (await guest.call("guest.wait", **{"for": "devices"}))["name"] == "web1"
    with pytest.raises(RpcError, match=r"no method 'guest\.fly'") as fault:
        await guest.call("guest.fly")
    assert (fault.value.code, fault.value.reason) == (-32601, "METHOD_NOT_FOUND")
    with pytest.raises(RpcError) as fault:
        await guest.call("drive.add", vdef="xvdb")
    assert "vdef" in dict(fault.value.problems)
    for name in STREAMING:
        with pytest.raises(Unsupported, match="changes its connection"):
            await guest.call(name)


def test_every_method_is_there() -> None:
    assert callable(Guest.send_fd)  # fd.add
    for name, method in METHODS.items():
        assert hasattr(Guest, name.replace(".", "_")) != (name in STREAMING), name
        assert (name in WAITING) == method.wait


async def test_refusals(guest: Guest, service: FakeService) -> None:
    with pytest.raises(StateError) as fault:
        await guest.guest_start()
    assert fault.value.data["allowed"] == ["defined", "stopped"]
    service.faults["guest_wait"] = TimedOut("not in time.")
    with pytest.raises(TimedOut, match="not in time"):
        await guest.guest_wait(for_="devices")


async def test_many_at_once_use_one_connection(guest: Guest, daemon: Daemon) -> None:
    daemon.cut()
    await until(lambda: daemon.connections == 0)
    answers = await asyncio.gather(*(guest.daemon_ping() for _ in range(200)))
    assert len(answers) == 200 and daemon.connections == 1


async def test_a_wait_that_is_cancelled_is_given_up_there(
    guest: Guest, daemon: Daemon, service: FakeService
) -> None:
    gate = service.hold("guest_wait")
    for _ in range(100):  # more than are ever taken at a time
        gate.entered.clear()
        gate.left.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await guest.guest_wait(for_="devices", timeout=3600)
        if gate.entered.is_set():
            await asyncio.wait_for(gate.left.wait(), 5)
    assert (await guest.daemon_ping())["epoch"] == guest.hello["epoch"]
    await until(lambda: daemon.connections == 1)
    assert "guest_wait" not in service.done


async def test_a_new_daemon(guest: Guest, daemon: Daemon) -> None:
    first = guest.hello["epoch"]
    service = await daemon.replace()
    assert (await guest.daemon_ping())["epoch"] == service.events.epoch == guest.hello["epoch"] != first
    await daemon.stop()
    await until(lambda: guest._shared is not None and guest._shared.lost is not None)  # it has heard of it
    for _ in range(2):
        with pytest.raises(Unreachable):
            await guest.daemon_ping()
    await daemon.start()
    assert await guest.daemon_ping()


async def test_lost_in_the_middle_of_a_call(guest: Guest, daemon: Daemon, service: FakeService) -> None:
    gate = service.hold("drive_add")
    tasks = Tasks(lambda name, fault: None)
    call = tasks.spawn(guest.drive_add(vdev="xvdb", target="/b"), "add")
    await gate.entered.wait()
    daemon.cut()
    with pytest.raises(ConnectionLost) as lost:
        await call
    assert lost.value.maybe_done
    gate.open.set()
    await until(lambda: "drive_add" in service.done)
    assert not (await guest.drive_add(vdev="xvdb", target="/b"))["changed"]  # it had been done


async def test_a_daemon_that_is_yet_to_come(daemon: Daemon, path: Path, naps: Naps) -> None:
    await daemon.stop()

    async def third() -> None:
        if len(naps.taken) == 3:
            await daemon.start()

    naps.then = third
    async with connect(path, wait=30, retry=Retry(sleep=naps)) as guest:
        assert guest.hello["guest"] == "web1"
    assert naps.taken == [0, 0.1, 0.2]
    await daemon.stop()
    naps.taken.clear()
    naps.then = None
    with pytest.raises(Unreachable):
        async with connect(path, wait=2, retry=Retry(sleep=naps)):
            pass
    assert naps.taken == [0, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5]


async def test_closed(guest: Guest, daemon: Daemon, service: FakeService) -> None:
    tasks = Tasks(lambda name, fault: None)
    gate = service.hold("guest_wait")
    waiting = tasks.spawn(guest.guest_wait(for_="devices"), "wait")
    events = guest.events("a")
    following = tasks.spawn(anext(events, None), "events")
    await gate.entered.wait()
    await until(lambda: daemon.connections == 3 and bool(service.events._subscriptions))
    await guest.close()
    await guest.close()
    with pytest.raises(ConnectionLost, match="was closed"):
        await waiting
    assert await following is None
    with pytest.raises(Closed):
        await guest.daemon_ping()
    with pytest.raises(Closed):
        guest.events()
    await until(lambda: daemon.connections == 0)


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, xenpvd.client; print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(loaded.stdout.split())
    assert found.isdisjoint({"aiohttp", "pydantic", "uvloop", "re2", "click", "jsonrpcserver"})
    ours = {name.split(".")[1] for name in found if name.startswith("xenpvd.")}
    assert ours == {"client", "errors", "paths", "tasks"}


async def test_a_descriptor(guest: Guest, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "b.img").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "b.img", os.O_RDWR)
    added = await guest.send_fd("data", fd)
    assert (added["descriptor"]["size"], added["changed"]) == (4096, True)
    assert os.fstat(fd).st_size == 4096, "it is still ours"
    assert [one["name"] for one in await guest.fd_list()] == ["data"]
    service.faults["fd_add"] = Exists("another one", name="data")
    with pytest.raises(Exists):
        await guest.send_fd("data", fd)
    os.close(fd)
    with pytest.raises(BadConfig, match="cannot send descriptor -1: it is not open"):
        await guest.send_fd("data", -1)
    with pytest.raises(RpcError, match=r"cannot call fd\.add: name"):
        await guest.send_fd("no name", 0)
    await guest.close()
    with pytest.raises(Closed):
        await guest.send_fd("data", 0)
