"""A guest's disks: the real store, a frontend each, rings, files."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.fakes.blkfront import Blkfront
from tests.fakes.evtchn import FakeEvtchnOps
from tests.fakes.gnttab import FakeGnttab
from xenpvd.abi.io_blkif import X86_64, Abi
from xenpvd.backends.blkif.backend import BlockBackend
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.config import Cache, DiskConfig
from xenpvd.tasks import Tasks

SIZE = 1 << 20


class Rig:
    """A guest's disks: ``disk(vdev)`` makes one, with its frontend."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.store = Xenstore(self.publish)
        self.client = self.store.client
        self.client.mkdir("/local/domain/1/device")
        self.client.set_perms("/local/domain/1/device", ["n0", "r1"])
        self.evtchn = FakeEvtchnOps()
        self.gnttab = FakeGnttab()
        self.faults: list[BaseException] = []
        self.disks: list[BlockBackend] = []
        self._tasks = Tasks(on_fault=lambda name, fault: None)

    def publish(self, name: str, /, **data: Any) -> None:
        self.events.append((name, data))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == name]

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn(coro, "test")

    def image(
        self, vdev: str, access: str = "rw", cls: type[Image] = Image, cache: Cache = "writeback"
    ) -> Image:
        path = self.tmp_path / f"{vdev}.img"
        if not path.exists():
            path.write_bytes(random.Random(vdev).randbytes(SIZE))
        return cls.open(path, readonly=access == "ro", cache=cache)

    def disk(
        self,
        vdev: str = "xvda",
        access: Any = "rw",
        image: Image | None = None,
        abi: Abi = X86_64,
        **options: Any,
    ) -> tuple[BlockBackend, Blkfront]:
        image = image or self.image(vdev, access)
        backend = BlockBackend(
            DiskConfig(vdev=vdev, target=image.path, access=access, **options),
            image,
            domid=1,
            xenstore=self.client,
            evtchn=self.evtchn,
            gnttab=self.gnttab,
            publish=self.publish,
            on_fault=lambda name, fault: self.faults.append(fault),
        )
        backend.start()
        self.disks.append(backend)
        return backend, Blkfront(self.client, self.evtchn, self.gnttab, backend.devid, abi=abi)

    def nodes(self, path: str) -> dict[str, str]:
        return {n.path.removeprefix(f"{path}/"): n.value for n in self.store.tree(path) if n.path != path}

    async def close(self) -> None:
        for backend in self.disks:
            await backend.disconnect()
            backend.image.close()
        self.evtchn.close()
        await self._tasks.cancel()
        states = self.named("drive.state")
        for vdev in {state["vdev"] for state in states}:
            mine = [state for state in states if state["vdev"] == vdev]
            assert all(a != b for a, b in pairwise(mine)), "an event without a change"
