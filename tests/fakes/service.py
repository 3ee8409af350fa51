"""A rpc.service.Service with a guest in memory: verbs do at once what a test expects of them.

A test can make a verb fail (``faults``), or hold it: ``hold("guest_wait")`` returns a Gate whose ``entered``
is set when the verb is called; it goes on when ``open`` is set. ``done`` names the verbs that ended well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from xenpvd.config import DiskConfig, GuestConfig
from xenpvd.errors import Busy, Exists, NotFound, StateError, XenstoreFault
from xenpvd.events import EventLog
from xenpvd.rpc.models import API
from xenpvd.views import (
    ConsoleChunk,
    DaemonInfo,
    DriveAdded,
    DriveInfo,
    GuestStatus,
    HostInfo,
    Phase,
    Runstate,
    ShutdownResult,
    XenstoreNode,
)


@dataclass
class Gate:
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)


class FakeViewer:
    def __init__(self, console: FakeConsole, mode: str, offset: int, who: str) -> None:
        self.console, self.mode, self.offset, self.who = console, mode, offset, who
        self.closed = asyncio.Event()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def read(self) -> bytes:
        """As the real one, this is not woken by close()."""
        while not self.closed.is_set():
            if data := bytes(self.console.recorded[self.offset :]):
                self.offset += len(data)
                return data
            if self.console.ended:
                break
            self._wake.clear()
            await self._wake.wait()
        return b""

    async def write(self, data: bytes) -> None:
        if self.mode != "rw":
            raise Busy("somebody else has the keyboard", by="another viewer")
        await self.console.type(data)

    def close(self) -> str:
        self.closed.set()
        if self in self.console.viewers:
            self.console.viewers.remove(self)
        return "detached"


class FakeConsole:
    """``echo`` makes a guest that prints what is typed."""

    def __init__(self) -> None:
        self.recorded = bytearray()
        self.typed = bytearray()
        self.viewers: list[FakeViewer] = []
        self.echo = False
        self.ended = False
        self._typed_more = asyncio.Event()

    def print(self, data: bytes) -> None:
        self.recorded += data
        for viewer in self.viewers:
            viewer.wake()

    def end(self) -> None:
        """The daemon ends: every viewer reads its end."""
        self.ended = True
        for viewer in self.viewers:
            viewer.wake()

    async def type(self, data: bytes) -> None:
        self.typed += data
        if self.echo:
            self.print(data)
        self._typed_more.set()

    async def wait_typed(self, text: bytes) -> None:
        while text not in self.typed:
            self._typed_more.clear()
            await self._typed_more.wait()


class FakeService:
    def __init__(self, name: str = "web1") -> None:
        self.events = EventLog()
        self.config = GuestConfig(name=name, kernel="/boot/vmlinuz")
        self.state = Runstate.RUNNING
        self.console = FakeConsole()
        self.xen_log = bytearray(b"(XEN) Xen version 4.17\n")
        self.drives: dict[str, DriveInfo] = {}
        self.xenstore: dict[str, bytes] = {
            "/": b"",
            "/tool": b"",
            "/tool/name": b"web1",
            "/tool/raw": b"\xff\0",
        }
        self.faults: dict[str, Exception] = {}
        self.gates: dict[str, Gate] = {}
        self.done: list[str] = []
        self.quitting = asyncio.Event()

    def hold(self, verb: str) -> Gate:
        return self.gates.setdefault(verb, Gate())

    def move(self, state: Runstate) -> None:
        before, self.state = self.state, state
        self.events.publish("guest.state", from_=before, to=state, reason="test")

    def _enter(self, verb: str) -> None:
        if verb in self.faults:
            raise self.faults[verb]

    async def _pass(self, verb: str) -> None:
        self._enter(verb)
        if gate := self.gates.get(verb):
            gate.entered.set()
            await gate.open.wait()

    def daemon_info(self) -> DaemonInfo:
        self._enter("daemon_info")
        return DaemonInfo(
            "xenpvd", "0.1.0", API, os.getpid(), self.events.epoch, 1.0, "asyncio", ("console",)
        )

    def daemon_quit(self) -> None:
        self.quitting.set()

    def guest_status(self) -> GuestStatus:
        self._enter("guest_status")
        return GuestStatus(
            name=self.config.name,
            state=self.state,
            memory_mib=self.config.memory,
            vcpus=self.config.vcpus,
            domid=1,
            phase=Phase.DEVICES if self.state is Runstate.RUNNING else None,
            reason=None,
            uptime=192.4 if self.state is Runstate.RUNNING else None,
            boot_times={"shim": 0.2, "devices": 1.5},
            host=HostInfo("kvm-xen", "KVM_CAP_XEN_HVM", 0x1FF, "4k", "no hugepages"),
        )

    def guest_config(self) -> GuestConfig:
        return self.config

    async def guest_check(self, config: GuestConfig) -> list[tuple[str, str]]:
        await self._pass("guest_check")
        return [("kernel", "none")] if "missing" in config.kernel else []

    async def guest_start(self, config: GuestConfig | None) -> GuestStatus:
        await self._pass("guest_start")
        if self.state is Runstate.RUNNING:
            raise StateError(
                "cannot start web1: it runs. Shut it down first.", "running", ["defined", "stopped"]
            )
        self.config = config or self.config
        self.move(Runstate.RUNNING)
        self.done.append("guest_start")
        return self.guest_status()

    async def guest_shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        await self._pass("guest_shutdown")
        self.move(Runstate.STOPPED)
        self.done.append("guest_shutdown")
        return ShutdownResult(mode, 0.1, 1.5, self.state)

    async def guest_destroy(self) -> GuestStatus:
        await self._pass("guest_destroy")
        self.move(Runstate.STOPPED)
        self.done.append("guest_destroy")
        return self.guest_status()

    async def guest_wait(self, for_: str, timeout: float, since: int = 0) -> GuestStatus:
        await self._pass("guest_wait")
        self.done.append("guest_wait")
        return self.guest_status()

    def drive_list(self) -> list[DriveInfo]:
        return list(self.drives.values())

    async def drive_add(self, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded:
        await self._pass("drive_add")
        if old := self.drives.get(disk.vdev):
            if (old.target, old.access) != (disk.target, disk.access):
                raise Exists(
                    f"cannot add {disk.vdev}: it is {old.target}. Choose another name.", vdev=disk.vdev
                )
            return DriveAdded(old, False, None)
        drive = DriveInfo(
            disk.vdev, 51712, disk.target, disk.access, disk.format, 1 << 20, 512, "Connected", "Connected"
        )
        self.drives[disk.vdev] = drive
        self.done.append("drive_add")
        self.events.publish("drive.added", vdev=disk.vdev)
        return DriveAdded(drive, True, 41.0 if wait else None)

    async def drive_remove(self, vdev: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        await self._pass("drive_remove")
        if vdev not in self.drives:
            if missing_ok:
                return False
            raise NotFound(f"cannot remove {vdev}: there is no such drive.", "drive", vdev)
        del self.drives[vdev]
        self.events.publish("drive.removed", vdev=vdev)
        return True

    def console_read(self, stream: str, since: int, limit: int) -> ConsoleChunk:
        self._enter("console_read")
        recorded = self.console.recorded if stream == "guest" else self.xen_log
        data = bytes(recorded[since : since + limit])
        return ConsoleChunk(since, since + len(data), 0, data)

    async def console_write(self, data: bytes, timeout: float) -> int:
        await self._pass("console_write")
        await self.console.type(data)
        return len(data)

    def console_attach(self, mode: str, since: int | None, who: str) -> FakeViewer:
        self._enter("console_attach")
        writers = [viewer for viewer in self.console.viewers if viewer.mode == "rw"]
        if mode == "steal":
            for viewer in writers:
                viewer.mode = "ro"
        elif mode == "rw" and writers:
            raise Busy(f"{writers[0].who} has the keyboard. Use --ro or --steal.", by=writers[0].who)
        viewer = FakeViewer(self.console, "ro" if mode == "ro" else "rw", since or 0, who)
        self.console.viewers.append(viewer)
        return viewer

    def xenstore_read(self, path: str) -> bytes:
        if path not in self.xenstore:
            raise XenstoreFault(f"cannot read {path}: there is no such node.", "ENOENT", path)
        return self.xenstore[path]

    def xenstore_list(self, path: str) -> list[str]:
        below = path.rstrip("/") + "/"
        return [
            node.removeprefix(below) for node in self.xenstore if node.startswith(below) and node != below
        ]

    def xenstore_tree(self, path: str, depth: int) -> Iterable[XenstoreNode]:
        for node, value in self.xenstore.items():
            if node.startswith(path):
                yield XenstoreNode(node, value.decode(errors="replace"), ("n0",))

    def with_drive(self, vdev: str, **changes: str) -> None:
        self.drives[vdev] = replace(self.drives[vdev], **changes)
