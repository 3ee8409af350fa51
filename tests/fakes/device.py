"""A xenbus device with the real store around it, and a driver that only notes what it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends.device import Frontend, XenbusDevice
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.errors import GuestFault
from xenpvd.tasks import Tasks

FRONTEND = "/local/domain/1/device/test/7"
BACKEND = "/local/domain/0/backend/test/1/7"


class Recorder:
    """A driver that only notes what it is asked for; ``refuse`` and ``hold`` change how it answers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.connected = False
        self.refuse: str | None = None
        self.broken: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.changes: list[tuple[str, str]] = []
        self.device: XenbusDevice | None = None

    def on_connect(self, frontend: Frontend) -> None:
        assert not self.connected
        self.calls.append("connect")
        if self.broken:
            raise self.broken
        if self.refuse:
            raise GuestFault(self.refuse)
        self.connected = True

    async def on_disconnect(self) -> None:
        if self.connected:
            self.calls.append("disconnect")
            if self.hold:
                await self.hold.wait()
            self.connected = False

    def on_change(self) -> None:
        assert self.device
        self.changes.append((self.device.state.name, self.device.frontend_state.name))


class DeviceRig:
    """A device with its store; ``guest`` writes the frontend's state and waits until it is seen."""

    def __init__(self) -> None:
        self.store = Xenstore(lambda *args, **kwargs: None)
        self.client = self.store.client
        self.client.mkdir("/local/domain/1/device")
        self.client.set_perms("/local/domain/1/device", ["n0", "r1"])
        self.driver = Recorder()
        self.faults: list[BaseException] = []
        self.device = XenbusDevice(
            "test",
            7,
            label="xvdb",
            domid=1,
            xenstore=self.client,
            driver=self.driver,
            on_fault=lambda name, fault: self.faults.append(fault),
        )
        self.driver.device = self.device
        self._tasks = Tasks(on_fault=lambda name, fault: None)

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is awaited later."""
        return self._tasks.spawn(coro, "test")

    def start(self) -> None:
        self.device.start({"colour": "red"}, {"feature-x": "1"})

    def nodes(self, path: str) -> dict[str, str]:
        return {n.path.removeprefix(f"{path}/"): n.value for n in self.store.tree(path) if n.path != path}

    def backend(self) -> S:
        """The backend's state as the guest reads it; it is always the one the device believes in."""
        state = S(int(self.client.read(f"{BACKEND}/state")))
        assert state is self.device.state
        return state

    def write(self, state: S | str) -> None:
        self.client.write(f"{FRONTEND}/state", state if isinstance(state, str) else f"{state:d}")

    async def guest(self, *states: S | str) -> S:
        for state in states:
            self.write(state)
            await self.settle()
        return self.backend()

    async def settle(self) -> None:
        """Let every task run until all of them wait; nothing here waits for time."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            await self.device._wait(predicate)
