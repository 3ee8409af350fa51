"""The life of one xenbus device, from its nodes to its end; the same for every class of device.

One task watches the frontend's ``state``, asks the table in ``xenbus.py`` and takes the step. It alone
connects and disconnects while the device lives, so the steps never overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.backends.ops import XenstoreOps, XenstoreTx, XenstoreWatch
from xenpvd.backends.xenbus import Step, otherend_changed, parse_state, refused
from xenpvd.errors import Busy, GuestFault, TimedOut, XenpvdError, XenstoreFault
from xenpvd.tasks import Tasks

#: Seconds that requests under way have to end when a device is cut off.
CUT_OFF_TIMEOUT = 30.0

#: Seconds that a guest has to notice that a device is gone; milliseconds are usual.
FORGET_TIMEOUT = 2.0

#: Changes of state that a frontend may make at once, and how many more per second: each is a thread, an
#: event and a log line, and an honest one makes a handful in its life.
BURST = 50
RATE = 10.0

#: Characters that an operator is shown of what the guest says of its own fault.
GUEST_WORDS = 200

#: Frontend states in which nobody uses the device: gone, waiting for a driver, let go of.
_IDLE = frozenset({XenbusState.Unknown, XenbusState.Initialising, XenbusState.Closed})


class Frontend:
    """The frontend's nodes, for a driver that connects. All are the guest's word, and may be anything."""

    def __init__(self, xenstore: XenstoreTx, path: str) -> None:
        self._xenstore = xenstore
        self._path = path

    def number(self, node: str, default: int | None = None) -> int:
        """A u32 in decimal. Raises :class:`GuestFault` if it is none, or missing without ``default``."""
        raw = _read(self._xenstore, f"{self._path}/{node}")
        if raw is None:
            if default is None:
                raise GuestFault(f"{node} is missing")
            return default
        if not 0 < len(raw) <= 10 or not raw.isdigit() or int(raw) >> 32:
            raise GuestFault(f"{node} is no number: {raw[:20]!r}")
        return int(raw)

    def text(self, node: str, default: str) -> str:
        raw = _read(self._xenstore, f"{self._path}/{node}")
        return default if raw is None else raw.decode("ascii", "replace")


class Driver(Protocol):
    """What a class of device brings along."""

    def on_connect(self, frontend: Frontend) -> None:
        """Take up the ring and port that the frontend offers. Raises :class:`GuestFault`, and ``OSError`` for
        what the host has no more of; :meth:`on_disconnect` ends what is there of it by then."""

    async def on_disconnect(self) -> None:
        """End what :meth:`on_connect` began and give back its pages and port. Idempotent; may be cancelled
        and called again."""

    def on_change(self) -> None:
        """The state of either end, or the error, is another one now."""


class XenbusDevice:
    """One device: ``kind`` ("vbd") and ``devid`` make its paths, ``label`` names it in messages.

    ``state`` and ``frontend_state`` are both ends' as last seen, ``error`` is why it was closed by fault, or
    that the guest refused it and its word why, until the guest tries anew.
    ``on_fault`` gets what is no guest's fault but ours, as :class:`Tasks` says. Loop thread only.
    """

    def __init__(
        self,
        kind: str,
        devid: int,
        *,
        label: str,
        domid: int,
        xenstore: XenstoreOps,
        driver: Driver,
        on_fault: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self.frontend_path = f"/local/domain/{domid}/device/{kind}/{devid}"
        self.backend_path = f"/local/domain/0/backend/{kind}/{domid}/{devid}"
        # where Linux' xenbus_dev_error tells what went wrong; the guest's word
        self._guest_error_path = f"/local/domain/{domid}/error/device/{kind}/{devid}"
        self.state = XenbusState.Initialising
        self.frontend_state = XenbusState.Unknown
        self.error: str | None = None
        self._label = label
        self._domid = domid
        self._xenstore = xenstore
        self._driver = driver
        self._tasks = Tasks(on_fault)
        self._steps = asyncio.Lock()
        self._watch: XenstoreWatch | None = None
        self._online = True
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    def start(self, frontend: Mapping[str, str], backend: Mapping[str, str]) -> None:
        """Publish both ends' nodes at once, those given and those every device has; then serve the guest.

        Whatever an earlier life has left at these paths is removed.
        """
        self.state = XenbusState.InitWait
        self.frontend_state = XenbusState.Initialising
        guest, dom0 = f"{self._domid}", "0"
        ends = (
            (
                self.frontend_path,
                [f"n{guest}", f"r{dom0}"],
                {
                    "backend": self.backend_path,
                    "backend-id": dom0,
                    **frontend,
                    "state": f"{XenbusState.Initialising:d}",
                },
            ),
            (
                self.backend_path,
                [f"n{dom0}", f"r{guest}"],
                {
                    "frontend": self.frontend_path,
                    "frontend-id": guest,
                    "online": "1",
                    **backend,
                    "state": f"{self.state:d}",
                },
            ),
        )
        with self._xenstore.transaction() as tx:
            _remove(tx, self._guest_error_path)
            for path, perms, nodes in ends:
                _remove(tx, path)
                tx.mkdir(path)
                tx.set_perms(path, perms)
                for node, value in nodes.items():  # they inherit the permissions
                    tx.write(f"{path}/{node}", value)
        self._watch = self._xenstore.watch(f"{self.frontend_path}/state")
        self._tasks.spawn(self._serve_frontend(self._watch), f"{self._label} frontend")
        self._changed()

    async def wait_connected(self, timeout: float) -> None:
        """Wait until both ends are Connected.

        Raises :class:`TimedOut` after ``timeout`` seconds, :class:`XenpvdError` as soon as the device has
        ended by a fault, the guest has refused it, or it is gone; the device stays as it is.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._wait(lambda: self._is_connected() or self._closed or self.error is not None)
        except TimeoutError:
            raise TimedOut(
                f"{self._label} is not connected after {timeout:g} s: the guest's end is "
                f"{self.frontend_state.name}. It stays attached, for the guest to take it up."
            ) from None
        if self.error is not None:
            raise XenpvdError(f"{self._label} did not connect: {self.error}. See the guest's console.")
        if self._closed:
            raise XenpvdError(f"{self._label} did not connect: it was removed meanwhile. Add it anew.")

    @property
    def closed(self) -> bool:
        """It was cut off for good."""
        return self._closed

    def fail(self, why: str) -> None:
        """The guest broke the protocol: cut it off, tell it why, and close."""
        self._tasks.spawn(self._fail(why), f"{self._label} fault")

    def announce(self, **nodes: str) -> None:
        """Change nodes of ours while the device lives; the state is written again, for the guest to look."""
        if not self._closed:
            self._switch(self.state, **nodes)

    async def remove(self, *, force: bool, timeout: float) -> None:
        """Take the device from the guest; afterwards neither end has nodes.

        Asks the guest and waits ``timeout`` seconds for it to let go, then raises :class:`TimedOut`, and the
        device stays. With ``force`` it is cut off without asking. Raises :class:`Busy` if it is being asked
        already, and what :meth:`close` raises.
        """
        if not force:
            if not self._online and not self._closed:
                raise Busy(f"cannot remove {self._label}: that is under way. Wait for it, or use force.")
            await self._ask_to_close(timeout)
        await self.close()
        # Linux looks there when its watch fires, finds nothing, and forgets the device. If the same one came
        # back before that, it would find it as if it had never gone, and leave it alone (xenbus_dev_changed).
        await self._xenstore.looked_at(self.frontend_path, FORGET_TIMEOUT)

    async def close(self) -> None:
        """Cut it off now, without a word to the guest, and remove both ends' nodes. Can be repeated.

        Raises :class:`TimedOut` if what is under way does not end in ``CUT_OFF_TIMEOUT`` seconds (a disk
        that hangs): it still uses the guest's memory then.
        """
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        try:
            async with asyncio.timeout(CUT_OFF_TIMEOUT):
                await self._tasks.cancel()
                await self._driver.on_disconnect()
        except TimeoutError:
            raise TimedOut(
                f"cannot cut off {self._label}: its requests have not ended after {CUT_OFF_TIMEOUT:g} s. "
                "The storage behind it hangs; see the host's log."
            ) from None
        finally:
            with self._xenstore.transaction() as tx:
                _remove(tx, self.frontend_path)
                _remove(tx, self.backend_path)
            self.state, self.frontend_state = XenbusState.Closed, XenbusState.Unknown
            self._changed()

    # ---- the task

    async def _serve_frontend(self, watch: XenstoreWatch) -> None:
        loop = asyncio.get_running_loop()
        credit, then = float(BURST), loop.time()
        async for _ in watch:
            raw = _read(self._xenstore, f"{self.frontend_path}/state")
            frontend_state = XenbusState.Unknown if raw is None else parse_state(raw)
            if frontend_state is None or frontend_state == self.frontend_state:
                continue
            async with self._steps:
                await self._otherend_changed(frontend_state)
            now = loop.time()
            credit, then = min(BURST, credit + (now - then) * RATE) - 1, now
            if credit < 0:
                await asyncio.sleep(-credit / RATE)

    async def _otherend_changed(self, frontend_state: XenbusState) -> None:
        before, self.frontend_state = self.frontend_state, frontend_state
        if self._online and self.error is None and refused(before, frontend_state):
            self.error = self._refusal()
        match otherend_changed(self.state, frontend_state, online=self._online):
            case Step.STAY:
                self._changed()
            case Step.PREPARE:
                await self._driver.on_disconnect()
                self._forget_error()
                self._switch(XenbusState.InitWait)
            case Step.CONNECT:
                await self._connect()
            case Step.CLOSE:
                self._switch(XenbusState.Closing)
            case Step.DISCONNECT:
                await self._driver.on_disconnect()
                self._switch(XenbusState.Closed)

    async def _connect(self) -> None:
        await self._driver.on_disconnect()
        try:
            self._driver.on_connect(Frontend(self._xenstore, self.frontend_path))
        except GuestFault as fault:
            why = str(fault)
        except OSError as fault:
            why = f"the host has not enough for it: {fault.strerror or fault}"
        else:
            self._forget_error()
            self._switch(XenbusState.Connected)
            return
        await self._driver.on_disconnect()
        self._give_up(why)

    def _refusal(self) -> str:
        raw = _read(self._xenstore, f"{self._guest_error_path}/error") or b""
        words = "".join(c for c in raw.decode("utf-8", "replace") if c.isprintable()).strip(" .")
        if len(words) > GUEST_WORDS:
            words = f"{words[:GUEST_WORDS]}…"
        return "the guest refused it" + (f": {words}" if words else "")

    def _forget_error(self) -> None:
        self.error = None
        with self._xenstore.transaction() as tx:
            _remove(tx, f"{self.backend_path}/error")

    async def _fail(self, why: str) -> None:
        async with self._steps:
            await self._driver.on_disconnect()
            self._give_up(why)

    def _give_up(self, why: str) -> None:
        self.error = why
        self._switch(XenbusState.Closing, error=why)

    async def _ask_to_close(self, timeout: float) -> None:
        before = self.state
        self._online = False
        if self.frontend_state in _IDLE:
            return
        self._switch(XenbusState.Closing, online="0")
        let_go = False
        try:
            async with asyncio.timeout(timeout):
                await self._wait(lambda: self.state is XenbusState.Closed or self._closed)
            let_go = True
        except TimeoutError:
            raise TimedOut(
                f"guest still uses {self._label} (state {self.frontend_state.name} after {timeout:g} s); "
                "it stays attached. Unmount it in the guest and try again, or cut it off with force."
            ) from None
        finally:
            if not let_go:  # by time-out, or because nobody waits any more
                self._withdraw(before)

    def _withdraw(self, before: XenbusState) -> None:
        """The guest has not let go: back to how it was, if its end is still where it was."""
        if self._closed:
            return
        self._online = True
        same = before is self.frontend_state is XenbusState.Connected and self.error is None
        self._switch(XenbusState.Connected if same else self.state, online="1")

    def _is_connected(self) -> bool:
        return self.state is self.frontend_state is XenbusState.Connected

    def _switch(self, state: XenbusState, **nodes: str) -> None:
        """Go to ``state``, with other nodes of ours written at the same time."""
        self.state = state
        if not self._closed:
            with self._xenstore.transaction() as tx:
                for node, value in {**nodes, "state": f"{state:d}"}.items():
                    tx.write(f"{self.backend_path}/{node}", value)
        self._changed()

    def _changed(self) -> None:
        self._driver.on_change()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


def _read(xenstore: XenstoreTx, path: str) -> bytes | None:
    try:
        return xenstore.read(path)
    except XenstoreFault as fault:
        if fault.data["error"] != "ENOENT":
            raise
        return None


def _remove(tx: XenstoreTx, path: str) -> None:
    try:
        tx.remove(path)
    except XenstoreFault as fault:
        if fault.data["error"] != "ENOENT":
            raise
