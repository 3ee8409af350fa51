"""The daemon as a whole, in this process, on machines without KVM."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.fakes.machine import FakeMachine
from tests.rpc.conftest import Peer
from xenpvd import dumpfile
from xenpvd.config import AccessConfig, GuestConfig, ReadyConfig
from xenpvd.ctl.rundir import RunDir
from xenpvd.daemon import Daemon, NameLock
from xenpvd.errors import Busy, HostError
from xenpvd.paths import open_regular
from xenpvd.views import Runstate


class Hall:
    """A daemon that runs in this loop."""

    def __init__(
        self,
        run_dir: Path,
        config: GuestConfig | None,
        stop_timeout: float = 5,
        accel: str | None = None,
        file: Path | None = None,
        start: bool = True,
    ) -> None:
        self.daemon = Daemon("web1", run_dir, config, stop_timeout, accel=accel, file=file)
        self.socket = run_dir / "web1" / "rpc.sock"
        self.peers: list[Peer] = []
        self.ended = asyncio.ensure_future(self.daemon.run(start=start and config is not None))  # noqa: TID251

    async def peer(self) -> Peer:
        ready, _, _ = self.daemon.events.subscribe(("daemon.ready",), since=0)
        async with asyncio.timeout(5):
            await anext(ready)
        ready.close()
        self.peers.append(await Peer.connect(self.socket))
        return self.peers[-1]


@pytest.fixture
async def halls() -> AsyncIterator[list[Hall]]:
    made: list[Hall] = []
    yield made
    for hall in made:
        hall.daemon.quit("destroy")
        with contextlib.suppress(Exception):
            await hall.ended
        for peer in hall.peers:
            await peer.close()


async def test_a_guest_from_start_to_shutdown_over_rpc(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()
    assert (await peer.result("guest.status"))["state"] == "running"
    assert (await peer.result("daemon.info"))["name"] == "web1"
    machines[0].guest_prints(b"hello from hvc0\n")
    await peer.result("guest.wait", **{"for": "console:hvc0"})
    assert (await peer.result("console.read"))["text"] == "hello from hvc0\n"
    machines[0].owner.machine_log(b"(XEN) hello\n")
    await peer.result("guest.wait", **{"for": "shim"})
    assert (await peer.result("console.read", console="xen"))["text"] == "(XEN) hello\n"
    await peer.result("console.write", text="ls\n")
    assert machines[0].guest_typed() == b"ls\n"
    assert "51712" in await peer.result("xenstore.list", path="/local/domain/1/device/vbd")
    peer.request("guest.shutdown", id_="bye")
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    reply = await peer.receive()
    assert reply["id"] == "bye" and reply["result"]["state"] == "stopped"
    await hall.ended  # on_poweroff = destroy: the daemon ends with its guest
    assert not hall.socket.exists()


async def test_an_idle_daemon_takes_one_guest_after_another(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    assert (await peer.result("guest.status"))["state"] == "defined"
    assert (await peer.call("guest.start"))["error"]["data"]["reason"] == "VALIDATION"
    config = definition.model_dump(mode="json")
    for _ in range(2):
        assert (await peer.result("guest.start", config=config))["state"] == "running"
        assert (await peer.result("guest.destroy"))["state"] == "stopped"
    assert len(machines) == 2 and all(machine.closed for machine in machines)


async def test_sigterm_asks_the_guest_first(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    """P2."""
    halls.append(hall := Hall(tmp_path / "run", definition))
    await hall.peer()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    await hall.ended
    assert machines[0].closed


@pytest.mark.parametrize("second", ["signal", "time"])
async def test_sigterm_does_not_wait_for_ever(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall], second: str
) -> None:
    """P2."""
    halls.append(hall := Hall(tmp_path / "run", definition, 0.05 if second == "time" else 60))
    peer = await hall.peer()
    await peer.result("events.subscribe", names=["daemon.stopping"])
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await peer.receive())["params"]["name"] == "daemon.stopping"
    if second == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await hall.ended
    assert machines[0].closed and hall.daemon.guest.state is Runstate.STOPPED


async def test_a_paused_guest_is_resumed_for_its_shutdown(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()
    machines[0].owner.machine_log(b"(XEN) hello\n")
    assert (await peer.result("guest.pause"))["state"] == "paused"
    hall.daemon.quit("shutdown")
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    await hall.ended
    assert not machines[0].paused and machines[0].closed


async def test_a_paused_guest_that_never_ran_is_not_booted_to_be_shut_down(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", None, stop_timeout=60))
    peer = await hall.peer()
    config = definition.model_dump(mode="json")
    assert (await peer.result("guest.start", config=config, paused=True))["state"] == "paused"
    hall.daemon.quit("shutdown")
    async with asyncio.timeout(5):
        await hall.ended
    assert machines[0].paused and machines[0].closed


async def test_quit_refuses_while_there_is_a_guest(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition, stop_timeout=60))
    peer = await hall.peer()
    refused = await peer.fault("daemon.quit")
    assert refused["code"] == 1001 and "shutdown or destroy" in refused["message"]
    assert refused["data"]["state"] == "running" and "stopped" in refused["data"]["allowed"]
    assert await peer.result("daemon.quit", guest="shutdown") == {"stopping": True}
    assert await peer.result("daemon.quit") == {"stopping": True}, "it is under way"
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    assert hall.daemon.events.history(("daemon.stopping",))
    async with asyncio.timeout(5):
        await hall.ended


async def test_quit_destroys_without_asking(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition, stop_timeout=60))
    peer = await hall.peer()
    assert await peer.result("daemon.quit", guest="destroy") == {"stopping": True}
    async with asyncio.timeout(5):
        await hall.ended
    written = [each.arguments for each in hall.daemon.guest.xenstore.history() if each.op == "WRITE"]
    assert written and not any("poweroff" in arguments for arguments in written)
    assert machines[0].closed and not hall.socket.exists()


async def test_quit_hurries_an_end_that_is_under_way(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", definition, stop_timeout=60))
    peer = await hall.peer()
    await peer.result("daemon.quit", guest="shutdown")
    await peer.result("daemon.quit", guest="destroy")
    async with asyncio.timeout(5):
        await hall.ended
    assert machines[0].closed


async def test_an_idle_daemon_quits_at_once(tmp_path: Path, halls: list[Hall]) -> None:
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    assert await peer.result("daemon.quit") == {"stopping": True}
    async with asyncio.timeout(5):
        await hall.ended
    assert not hall.socket.exists()


async def test_a_guest_that_is_always_restarted_ends_with_its_daemon(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    config = definition.model_copy(update={"on_poweroff": "restart"})
    halls.append(hall := Hall(tmp_path / "run", config))
    await hall.peer()
    hall.daemon.quit("shutdown")
    assert await machines[0].guest_obeys_shutdown() == "poweroff"
    await hall.ended
    assert len(machines) == 1 and hall.daemon.guest.state is Runstate.STOPPED


async def test_the_daemons_accelerator_comes_before_the_definitions(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    definition = definition.model_copy(update={"accel": "kvm-xen", "xen_version": "4.20"})
    halls.append(hall := Hall(tmp_path / "run", definition, accel="kvm"))
    peer = await hall.peer()
    assert machines[0].config.accel == "kvm" and machines[0].config.xen_version == (4, 20)
    assert (await peer.result("guest.config"))["accel"] == "kvm"
    halls.append(other := Hall(tmp_path / "other", None, accel="kvm"))
    peer = await other.peer()
    config = definition.model_dump(mode="json") | {"disk": []}  # the image is locked by the first
    await peer.result("guest.start", config=config)
    assert machines[1].config.accel == "kvm"


async def test_looking_into_a_guest_over_rpc(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    looks = ("vcpu.list", "memory.info", "evtchn.list", "grant.list", "hypercall.stats")
    for look in looks:
        assert (await peer.call(look))["error"]["data"]["reason"] == "GUEST_STATE", look
    await peer.result("guest.start", config=definition.model_dump(mode="json"))
    machine = machines[0]
    machine.guest_onlines({0})
    assert [vcpu["online"] for vcpu in await peer.result("vcpu.list", regs=True)] == [True]
    assert (await peer.result("memory.info"))["ram"] == 128 << 20
    assert {port["port"] for port in await peer.result("evtchn.list")} == {
        machine.console_port,
        machine.store_port,
    }
    await peer.result("evtchn.inject", port=machine.store_port)
    assert machine.injected == [machine.store_port]
    assert (await peer.call("evtchn.inject", port=99))["error"]["data"]["reason"] == "NOT_FOUND"
    assert await peer.result("grant.list") == []
    assert (await peer.result("hypercall.stats"))["total"] == 31
    stats = await peer.result("guest.stats")
    assert (stats["boots"], stats["vcpus"][0]["online"], stats["rpc"]["connected"]) == (1, True, 1)
    assert {"method": "evtchn.inject", "code": 1002, "count": 1} in stats["rpc"]["calls"]
    assert stats["events"]["published"] == hall.daemon.events.seq
    assert (await peer.result("guest.status"))["host"]["accel"] == "kvm-xen"
    await peer.result("guest.pause")
    refused = await peer.call("drive.remove", vdev="xvda")
    assert "resume it first" in refused["error"]["message"]
    assert (await peer.result("vcpu.list"))[0]["state"] == "paused"
    await peer.result("guest.reset")
    await peer.result("guest.resume")
    machines[1].owner.machine_log(b"(XEN) shim used pages 0x800 reserving 0x1000 free pages\n")
    target = await peer.result("memory.set_target", mib=100, wait=False)
    assert target["reached_mib"] == 128 and target["confirmed"] is None
    assert (await peer.result("vcpu.set_online", count=1, wait=False))["online"] == []
    sysrq = await peer.call("guest.sysrq", key="h", timeout=0.05)
    assert sysrq["error"]["data"]["reason"] == "TIMEOUT"
    await peer.result("guest.destroy")
    assert (await peer.result("hypercall.stats"))["total"] == 31  # of the last life
    assert (await peer.call("evtchn.list"))["error"]["data"]["reason"] == "GUEST_STATE"


async def test_xenstored_sock_is_the_guests_store(tmp_path: Path, halls: list[Hall]) -> None:
    halls.append(Hall(tmp_path, None))
    peer = await halls[0].peer()
    path = tmp_path / "web1" / "xenstored.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    await peer.result("xenstore.write", path="/tool/by-rpc", text="1")
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(struct.pack("<4I", 2, 1, 0, 13) + b"/tool/by-rpc\0")
    assert await reader.readexactly(17) == struct.pack("<4I", 2, 1, 0, 1) + b"1"
    halls[0].daemon.quit("shutdown")
    assert await reader.read() == b""
    await halls[0].ended
    assert not path.exists()
    writer.close()


async def test_a_start_that_fails_ends_the_daemon_with_the_reason(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine]
) -> None:
    Path(definition.kernel).unlink()
    daemon = Daemon("web1", tmp_path / "run", definition, 1)
    with pytest.raises(Exception, match="cannot read the kernel"):
        await daemon.run(start=True)
    assert not (tmp_path / "run/web1/rpc.sock").exists()


async def test_a_callback_that_fails_ends_the_guest_only(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P16."""
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()
    asyncio.get_running_loop().call_soon(lambda: 1 // 0)
    status = await peer.result("guest.wait", **{"for": "crashed"})
    assert status["reason"] == "fault" and "ZeroDivisionError" in caplog.text
    assert (await peer.result("daemon.ping"))["epoch"]


async def test_what_systemd_is_told(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        async def until(*words: str) -> None:
            left = set(words)
            async with asyncio.timeout(10):
                while left:
                    left.discard((await asyncio.get_running_loop().sock_recv(systemd, 4096)).decode())

        halls.append(hall := Hall(tmp_path / "run", definition))
        peer = await hall.peer()
        await until("READY=1", "STATUS=running: created")
        machines[0].owner.machine_log(b"(XEN) hello\n")
        await until("STATUS=running: shim")
        await peer.result("guest.pause")
        await until("STATUS=paused")
        await until("WATCHDOG=1")
        machines[0].stuck_by = "vCPU 0 is stuck"
        await peer.result("guest.resume")
        await until("STATUS=running: shim")
        machines[0].stuck_by = None
        await until("WATCHDOG=1")
        hall.daemon.quit("shutdown")
        await until("STOPPING=1")
        await until("WATCHDOG=1")  # it is fed while the guest takes its time
        assert await machines[0].guest_obeys_shutdown() == "poweroff"
        await hall.ended
        await until("STATUS=stopped: poweroff")


def test_one_daemon_per_name(tmp_path: Path) -> None:
    """N21."""
    lock = NameLock(tmp_path / "web1", "web1")
    with pytest.raises(Busy, match=rf"a daemon of that name runs already \(pid {os.getpid()}\)"):
        NameLock(tmp_path / "web1", "web1")
    lock.release()
    NameLock(tmp_path / "web1", "web1").release()
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="Choose another folder with --run-dir"):
        NameLock(tmp_path / "file" / "web1", "web1")


def test_a_lock_that_was_tidied_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """xenpvctl removes what a failed start leaves, just as another daemon has opened it."""
    lock_file, flock = tmp_path / "web1" / "lock", fcntl.flock
    gone: list[int] = []

    def tidied(fd: int, how: int) -> None:
        if not gone:
            gone.append(fd)
            lock_file.unlink()
            lock_file.parent.rmdir()
        flock(fd, how)

    monkeypatch.setattr("xenpvd.daemon.fcntl.flock", tidied)
    lock = NameLock(tmp_path / "web1", "web1")
    assert gone and lock_file.read_text() == f"{os.getpid()}\n"
    with pytest.raises(Busy):
        NameLock(tmp_path / "web1", "web1")
    lock.release()


def test_who_tidies_up_is_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """xenpvctl holds the lock for a moment, in which the folder goes as well."""
    place, ended = RunDir(tmp_path), subprocess.Popen(["true"])
    ended.wait()
    for holder in (f"{ended.pid}\n", f"{os.getpid()}\n", ""):
        place.lock("web1").parent.mkdir()
        place.lock("web1").write_text(holder)
        tidying = place.lock("web1").open()
        fcntl.flock(tidying, fcntl.LOCK_EX)

        def tidied(seconds: float, tidying: IO[str] = tidying) -> None:
            tidying.close()
            place.tidy("web1")

        monkeypatch.setattr("xenpvd.daemon.time.sleep", tidied)
        lock = NameLock(tmp_path / "web1", "web1")
        assert place.lock("web1").read_text() == f"{os.getpid()}\n"
        lock.release()
        place.tidy("web1")


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_folder_that_is_tidied_away_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    directory, there = tmp_path / "web1", os.path.isdir
    gone: list[str] = []

    def tidied(path: Path, flags: int, mode: int) -> int:
        if not gone:
            gone.append("open")
            directory.rmdir()
        return open_regular(path, flags, mode)

    def no_more(path: Path) -> bool:  # what mkdir has found, and looks at
        if not gone and path == directory:
            gone.append("mkdir")
            directory.rmdir()
        return there(path)

    if call == "open":
        monkeypatch.setattr("xenpvd.daemon.open_regular", tidied)
    else:
        directory.mkdir()
        monkeypatch.setattr(Path, "is_dir", no_more)
    NameLock(directory, "web1").release()
    assert gone == [call]


def test_a_lock_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "web1").mkdir()
    lock = tmp_path / "web1" / "lock"
    os.mkfifo(lock)
    with pytest.raises(HostError, match=f"cannot use {lock}: it is no regular file. Choose another folder"):
        NameLock(lock.parent, "web1")


@pytest.mark.parametrize("end", ["ready", "quit", "poweroff"])
async def test_with_ready_in_its_definition_the_daemon_is_when_its_guest_is(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall], end: str
) -> None:
    """It serves from the beginning on."""
    changed = {"ready": ReadyConfig(when="console:login:"), "on_poweroff": "preserve"}
    halls.append(hall := Hall(tmp_path / "run", definition.model_copy(update=changed)))
    running, _, _ = hall.daemon.events.subscribe(("guest.boot",), since=0)
    async with asyncio.timeout(5):
        await anext(running)
    running.close()
    peer = await Peer.connect(hall.socket)
    assert (await peer.result("guest.status"))["ready"] is False
    assert not hall.daemon.events.history(("daemon.ready",))
    if end == "ready":
        machines[0].guest_prints(b"login: ")
    elif end == "quit":
        hall.daemon.quit("shutdown")
    else:
        machines[0].end("poweroff")
    await hall.peer()
    assert hall.daemon.guest.status("web1").ready is (end == "ready")
    await peer.close()


async def test_a_socket_for_looking(tmp_path: Path, halls: list[Hall]) -> None:
    halls.append(hall := Hall(tmp_path / "run", None))
    await hall.peer()
    place = hall.socket.with_name("rpc-ro.sock")
    assert (hall.socket.stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o660, 0o666)
    assert hall.socket.parent.stat().st_mode & 0o777 == 0o750
    hall.peers.append(looker := await Peer.connect(place))
    assert (await looker.result("guest.status"))["state"] == "defined"
    assert (await looker.fault("daemon.quit"))["data"]["reason"] == "PERMISSION"


async def test_who_may_what_does_not_come_by_rpc(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    access = {"operator": ["group:root"]}
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    config = definition.model_dump(mode="json") | {"access": access}
    fault = await peer.fault("guest.start", config=config)
    assert fault["data"]["reason"] == "VALIDATION" and "is the daemon's" in fault["message"]
    await peer.result("guest.start", config=definition.model_dump(mode="json"))


async def test_with_roles_everybody_may_knock(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    access = AccessConfig.model_validate({"operator": ["group:root"]})
    halls.append(hall := Hall(tmp_path / "run", definition.model_copy(update={"access": access})))
    await hall.peer()
    assert hall.socket.parent.stat().st_mode & 0o777 == 0o751
    modes = {path.name: path.stat().st_mode & 0o777 for path in hall.socket.parent.glob("*.sock")}
    assert modes == {
        "rpc.sock": 0o666, "rpc-ro.sock": 0o666, "console0.sock": 0o666, "xenstored.sock": 0o660,
    }  # fmt: skip
    hall.daemon.quit("shutdown")
    await machines[0].guest_obeys_shutdown()
    await hall.ended
    halls.append(hall := Hall(tmp_path / "run", definition))
    await hall.peer()
    assert hall.socket.parent.stat().st_mode & 0o777 == 0o750, "that is over"


async def test_a_dump_of_a_guest_with_its_memory(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    file = tmp_path / "web1.tar.gz"
    assert (await peer.fault("guest.dump", memory=True))["data"]["reason"] == "GUEST_STATE"
    await peer.result("guest.start", config=definition.model_dump(mode="json"))
    machines[0].memory.write(1 << 20, b"in the guest")
    begun = await peer.result("guest.dump", file=str(file), memory=True)
    assert (begun["kind"], begun["state"], begun["progress"]["unit"]) == ("guest.dump", "running", "bytes")
    done = await peer.result("job.wait", job=begun["job"])
    assert done["state"] == "done", done
    assert done["result"]["live"] is True and done["result"]["missing"] == {}
    assert b"in the guest" in (tmp_path / "web1.core").read_bytes()
    again = await peer.result("guest.dump", file=str(file))
    failed = await peer.result("job.wait", job=again["job"])
    assert (failed["state"], failed["error"]["data"]["reason"]) == ("failed", "EXISTS")
    await peer.result("guest.destroy")
    of_none = await peer.result("guest.dump", file=str(tmp_path / "b.tar.gz"))
    assert "vcpus" in (await peer.result("job.wait", job=of_none["job"]))["result"]["missing"]


async def test_a_dump_that_the_daemons_end_gives_up(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, go = threading.Event(), threading.Event()
    sparse = dumpfile._sparse

    def held(*args: Any) -> None:
        entered.set()
        go.wait(10)
        sparse(*args)

    monkeypatch.setattr(dumpfile, "_sparse", held)
    halls.append(hall := Hall(tmp_path / "run", definition))
    peer = await hall.peer()
    await peer.result("guest.dump", file=str(tmp_path / "web1.tar.gz"), memory=True)
    await asyncio.to_thread(entered.wait, 5)
    assert (tmp_path / "web1.core").exists()
    hall.daemon.quit("destroy")
    go.set()
    async with asyncio.timeout(5):
        await hall.ended
    assert not list(tmp_path.glob("web1.*"))
