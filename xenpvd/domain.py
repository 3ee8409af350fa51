"""One life of a guest: a machine with the store, the console and the disks connected to it.

The store, the console and the images live longer (``guest.py`` owns them); a reboot is another Domain. With
``guest.py`` the only place that knows both the engine room and the backends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from xenpvd.backends.blkif.backend import BlockBackend
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.console.backend import Console
from xenpvd.backends.console.device import ConsoleDevice
from xenpvd.backends.ops import EvtchnPort, XenstoreTx
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.config import DiskConfig, GuestConfig
from xenpvd.errors import HostError, StateError, XenpvdError, XenstoreFault
from xenpvd.events import Publish
from xenpvd.progress import Progress
from xenpvd.signs import shown
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import Phase
from xenpvd.vmm import boot, layout
from xenpvd.vmm.machine import Machine, MachineConfig, Owner

log = logging.getLogger(__name__)

DOMID = 1
#: How long a configured disk may take to be used: for ever, in seconds
_FOREVER = 1e6
HOME = f"/local/domain/{DOMID}"
#: The permissions of a node that the guest reads and does not write
READABLE = ["n0", f"r{DOMID}"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a domain is connected to and outlives it; ``uuid`` is the guest's over all its lives."""

    uuid: str
    xenstore: Xenstore
    console: Console
    channels: Mapping[int, Console]
    progress: Progress
    publish: Publish
    on_fault: Callable[[str, BaseException], None]


class Domain:
    """Made by :meth:`create`, ended by :meth:`end`. Loop thread only."""

    def __init__(self, config: GuestConfig, machine: Machine, surroundings: Surroundings) -> None:
        self.config = config
        self.machine = machine
        self.drives: dict[str, BlockBackend] = {}
        self.channels: dict[str, ConsoleDevice] = {}
        #: why this life is over, or is being ended: "poweroff", "crash", "reset", "destroyed" ...
        self.ended_by: str | None = None
        #: disks whose last requests had not ended when the VM had: their storage hangs
        self.hung: list[str] = []
        self._around = surroundings
        self._store_port: EvtchnPort | None = None
        self._tasks = Tasks(surroundings.on_fault)
        self._watchers = Tasks(surroundings.on_fault)
        self._ending: asyncio.Task[None] | None = None
        self._holders = 0
        self._not_held = asyncio.Event()
        self._not_held.set()

    @classmethod
    async def create(
        cls,
        config: GuestConfig,
        image: boot.BootImage,
        images: dict[str, tuple[DiskConfig, Image]],
        surroundings: Surroundings,
        owner: Owner,
    ) -> Domain:
        """Build the machine and connect everything; no vCPU runs yet. Leaves nothing behind if it raises."""
        major, minor = map(int, config.xen_version.split("."))
        machine_config = MachineConfig(
            ram=config.memory * layout.MIB,
            vcpus=config.vcpus,
            domid=DOMID,
            xen_version=(major, minor),
            accel=config.accel,
        )
        machine = await in_thread(
            partial(Machine, machine_config, image, owner), drop=lambda late: late.close()
        )
        domain = cls(config, machine, surroundings)
        try:
            domain._publish_nodes()
            domain._connect()
            for disk, opened in images.values():
                domain.add_drive(disk, opened)
            for devid, console in surroundings.channels.items():
                domain.add_channel(devid, console)
            domain._watch_phases()
        except BaseException:
            await domain.end()
            raise
        return domain

    def add_drive(self, disk: DiskConfig, image: Image) -> BlockBackend:
        """Offer a disk to the guest. Raises :class:`BadConfig` for a vdev without a number, and
        :class:`StateError` if this life is over."""
        self.check_lives(f"add {disk.vdev}")
        drive = BlockBackend(
            disk,
            image,
            domid=DOMID,
            xenstore=self._around.xenstore.client,
            evtchn=self.machine,
            gnttab=self.machine.grants,
            publish=self._around.publish,
            on_fault=self._around.on_fault,
        )
        self.drives[disk.vdev] = drive
        drive.start()
        return drive

    def add_channel(self, devid: int, console: Console) -> None:
        """Offer a further console to the guest."""
        channel = ConsoleDevice(
            console,
            devid,
            domid=DOMID,
            xenstore=self._around.xenstore.client,
            evtchn=self.machine,
            gnttab=self.machine.grants,
            on_fault=self._around.on_fault,
        )
        self.channels[console.name] = channel
        channel.start()

    @property
    def ending(self) -> bool:
        """This life is over, or about to be."""
        return self._ending is not None

    def check_lives(self, what: str) -> None:
        """Raises :class:`StateError` if this life is over, or about to be."""
        if self.ending:
            raise StateError(
                f"cannot {what}: the guest has just ended. Try again when it runs.", "stopped", ["running"]
            )

    @contextlib.contextmanager
    def held(self, what: str) -> Iterator[None]:
        """The end of this life, and so the next one, waits for what is done in here, which must come to its
        end once the disks are disconnected. Raises :class:`StateError` as :meth:`check_lives`."""
        self.check_lives(what)
        self._holders += 1
        self._not_held.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._not_held.set()

    async def end(self) -> None:
        """Stop the vCPUs, take the console's last bytes, finish and flush the disks, leave no node behind.

        The images stay open. All callers wait for the same end, which goes on if one of them is cancelled. A
        disk that hangs is logged, noted in ``hung`` and left behind.
        """
        if self._ending is None:
            self._ending = self._tasks.spawn(self._end(), "end of a life")
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            await in_thread(self.machine.stop)
        except HostError:  # the host has no more threads: better that all wait than that the guest runs on
            self.machine.stop()
        async with contextlib.AsyncExitStack() as last:  # each step is taken, whatever becomes of the others
            last.callback(self._close_machine)
            last.callback(self._remove_nodes)
            last.push_async_callback(self._watchers.cancel)
            if self._store_port is not None:
                last.callback(self._store_port.close)
            last.push_async_callback(self._not_held.wait)
            last.push_async_callback(self._end_drives)
            # before the disks: who removes one waits until a connected guest has seen it, and this one won't
            last.push_async_callback(self._around.xenstore.disconnect, DOMID)
            last.push_async_callback(self._end_channels)
            last.push_async_callback(self._around.console.disconnect)

    async def _end_drives(self) -> None:
        async def end(vdev: str, drive: BlockBackend) -> None:
            try:
                await drive.disconnect()
            except XenpvdError as fault:
                log.error("disk %s: %s", vdev, fault)
                self.hung.append(vdev)

        await asyncio.gather(*(end(vdev, drive) for vdev, drive in list(self.drives.items())))

    async def _end_channels(self) -> None:
        await asyncio.gather(*(channel.disconnect() for channel in self.channels.values()))

    def _close_machine(self) -> None:
        # a request that hangs may still be read from the guest's memory, and must not find zeros there
        self.machine.close(release=not self.hung)

    def _remove_nodes(self) -> None:
        for path in (HOME, f"/vm/{self._around.uuid}"):
            with contextlib.suppress(XenstoreFault):
                self._around.xenstore.client.remove(path)

    def _connect(self) -> None:
        self._around.console.connect(
            self.machine.page(layout.CONSOLE_PFN), self.machine.bind_interdomain(self.machine.console_port)
        )
        self._store_port = self.machine.bind_interdomain(self.machine.store_port)
        self._around.xenstore.connect(
            DOMID,
            self.machine.page(layout.STORE_PFN),
            self._store_port,
            lambda: self._around.progress.reached(Phase.XENBUS),
            self._around.progress.ran,
        )

    def _watch_phases(self) -> None:
        self._watchers.spawn(self._watch_console(), "console phase")
        self._watchers.spawn(self._watch_ready(), "ready phase")
        self._watchers.spawn(self._watch_devices(list(self.drives.values())), "devices phase")

    async def _watch_ready(self) -> None:
        around, history = self._around, self._around.console.history
        begin = history.end
        with contextlib.suppress(XenpvdError):  # the guest is over
            await around.progress.wait(
                self.config.ready.when,
                _FOREVER,
                lambda sign: shown(sign, history, begin, around.xenstore, HOME),
            )
            around.progress.reached(Phase.READY)

    async def _watch_console(self) -> None:
        history = self._around.console.history
        if await history.wait(history.end):
            self._around.progress.reached(Phase.KERNEL)

    async def _watch_devices(self, drives: list[BlockBackend]) -> None:
        progress = self._around.progress
        await progress.until(lambda: progress.has_reached(Phase.XENBUS))
        for drive in drives:
            try:
                await drive.wait_connected(_FOREVER)
            except XenpvdError:  # drive.error has told why; the phase does not come
                return
        progress.reached(Phase.DEVICES)

    def _publish_nodes(self) -> None:
        """What libxl publishes for a guest (docs/misc/xenstore-paths.pandoc), at once and whole.

        ``memory/target`` is left out on purpose: Linux takes it for an absolute figure, and would balloon
        for ever towards the VM's size, which includes the shim's share. ``balloon.py`` writes it when asked.
        """
        vm = f"/vm/{self._around.uuid}"
        writable = [f"n{DOMID}"]
        kib = self.config.memory * 1024
        nodes = {
            vm: "",
            f"{vm}/uuid": self._around.uuid,
            f"{vm}/name": self.config.name,
            HOME: "",
            f"{HOME}/vm": vm,
            f"{HOME}/name": self.config.name,
            f"{HOME}/domid": f"{DOMID}",
            f"{HOME}/memory/static-max": f"{kib}",
            f"{HOME}/device": "",
            f"{HOME}/control": "",
            f"{HOME}/control/platform-feature-multiprocessor-suspend": "1",
            f"{HOME}/control/platform-feature-xs_reset_watches": "1",
            f"{HOME}/store/port": f"{self.machine.store_port}",
            f"{HOME}/store/ring-ref": f"{layout.STORE_PFN}",
            f"{HOME}/console/port": f"{self.machine.console_port}",
            f"{HOME}/console/ring-ref": f"{layout.CONSOLE_PFN}",
            f"{HOME}/console/type": "xenpvd",
            **{f"{HOME}/cpu/{n}/availability": "online" for n in range(self.config.vcpus)},
        }
        for_guest = [
            *(f"control/{leaf}" for leaf in ("shutdown", "sysrq")),
            *(f"control/feature-{leaf}" for leaf in ("poweroff", "reboot", "suspend")),
            *("data", "drivers", "feature", "attr", "error"),
        ]
        with self._around.xenstore.client.transaction() as tx:
            for path, value in nodes.items():
                _write(tx, path, value, READABLE)
            for leaf in for_guest:
                _write(tx, f"{HOME}/{leaf}", "", writable)


def _write(tx: XenstoreTx, path: str, value: str, perms: list[str]) -> None:
    tx.write(path, value)
    tx.set_perms(path, perms)
