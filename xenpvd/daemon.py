"""The front hall: one daemon for one guest. Lock, sockets, signals, readiness, and the way out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import xenpvd
from xenpvd.access import Access
from xenpvd.changes import differences
from xenpvd.config import AccessConfig, GuestConfig, load
from xenpvd.counts import Durations
from xenpvd.errors import Busy, HostError, StateError, Unsupported, XenpvdError
from xenpvd.events import EventLog
from xenpvd.guest import Guest
from xenpvd.jobs import Jobs
from xenpvd.lag import come_first, watch
from xenpvd.paths import open_regular
from xenpvd.rpc.errors import fault_of
from xenpvd.rpc.models import API
from xenpvd.rpc.raw import ConsoleSocket
from xenpvd.rpc.server import RpcServer
from xenpvd.service import Service
from xenpvd.supervisor import Supervisor
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import DaemonInfo, Phase, Reloaded, Runstate
from xenpvd.vmm.vcpu import install_kick_handler

log = logging.getLogger(__name__)

FEATURES = (
    "balloon", "channels", "console-upgrade", "descriptors", "drive-hotadd", "dump", "events-replay", "jobs",
    "log", "pause", "readiness", "reboot", "reload", "roles", "stats", "vcpu-hotplug",
)  # fmt: skip

#: Seconds in which it is told once that clients find no file left
FULL_PAUSE = 10.0


#: Seconds for which somebody who is tidying up keeps us from the lock at most
TIDYING = 1.0

#: Seconds; who started us has a limit of its own
_FOREVER = 1e6


class NameLock:
    """RUN_DIR/NAME/lock, held as long as the daemon lives: one daemon per name. A kill -9 frees it."""

    def __init__(self, directory: Path, name: str) -> None:
        """Raises :class:`Busy` if the name is in use, :class:`HostError` if there can be no lock."""
        self._file = directory / "lock"
        deadline = time.monotonic() + TIDYING
        while (fd := self._take(name, last=time.monotonic() > deadline)) is None:
            time.sleep(0.001)  # nobody tells when xenpvctl has tidied up (RunDir.tidy)
        self._fd = fd

    def _take(self, name: str, last: bool) -> int | None:
        """None if it may be had in a moment; not if this is the ``last`` attempt."""
        directory = self._file.parent
        with contextlib.ExitStack() as undo:
            try:
                directory.mkdir(mode=0o750, parents=True, exist_ok=True)
                fd = open_regular(self._file, os.O_RDWR | os.O_CREAT, 0o640)
                undo.callback(os.close, fd)
                if not _locked(fd):
                    holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                    if not last and not _another(holder):
                        return None  # who holds it is none that has written this
                    raise Busy(
                        f"cannot start {name}: a daemon of that name runs already (pid {holder}). "
                        "Choose another name, or stop that one.",
                        by=f"pid {holder}",
                    )
                if not os.fstat(fd).st_nlink:
                    return None  # it was tidied away meanwhile: this lock is nobody's
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            except OSError as fault:
                if not last and isinstance(fault, FileNotFoundError | FileExistsError):
                    return None  # the folder was tidied away between two of these
                raise HostError(
                    f"cannot use {fault.filename or directory}: {fault.strerror}. "
                    "Choose another folder with --run-dir.",
                    fault.errno or 0,
                    str(directory),
                ) from None
            undo.pop_all()
            return fd

    def release(self) -> None:
        os.close(self._fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _another(holder: str) -> bool:
    """Whether ``holder`` is the number of a process that lives, and not ours."""
    try:
        os.kill(pid := int(holder), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


class _Server(Protocol):
    """A socket."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Daemon:
    """``config`` None: idle until ``guest.start``. With one, the daemon ends with its guest. ``http`` and
    ``qmp``: serve http.sock and qmp.sock, too. ``accel`` comes before that of any definition. ``file`` is
    what ``config`` was read from, if it can be read anew. ``descriptors`` are open images by name. Raises
    what is wrong with those."""

    def __init__(
        self,
        name: str,
        run_dir: Path,
        config: GuestConfig | None,
        stop_timeout: float,
        http: bool = False,
        accel: str | None = None,
        qmp: bool = False,
        file: Path | None = None,
        descriptors: Iterable[tuple[str, int]] = (),
    ) -> None:
        self.name = name
        self._accel = accel
        self._file = file
        self._reloading = asyncio.Lock()
        self.config = None if config is None else self.as_run(config)
        self._access = Access(config.access if config is not None else AccessConfig())
        self.events = EventLog()
        self.guest = Guest(self.events.publish, self._guest_over)
        self.jobs = Jobs(self.events.publish, fault_of)
        for each, fd in descriptors:
            self.guest.descriptors.inherit(each, fd)
        self._directory = run_dir / name
        self._stop_timeout = stop_timeout
        self._http = http
        self._qmp = qmp
        self._started = time.time()
        self.lag = Durations()
        self._quit = asyncio.Event()
        self._at_once = asyncio.Event()
        # a start that fails is raised by run(); a shutdown that does is followed by the guest's end anyway
        self._tasks = Tasks(lambda name, fault: log.debug("%s: %s", name, fault))
        self._supervisor = Supervisor()
        self._telling = Tasks()
        self._full_until = 0.0  # until then it is not told again that there are no more files

    async def run(self, *, start: bool) -> None:
        """Serve until told to end. Raises what keeps it from starting."""
        lock = NameLock(self._directory, self.name)
        servers = self._servers()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_fault)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        install_kick_handler()
        come_first()
        self._telling.spawn(self._supervisor.watchdog(self.guest.stuck), "watchdog")
        self._telling.spawn(self._tell_status(), "status")
        self._telling.spawn(watch(self.lag), "loop lag")
        try:
            for server in servers:
                await server.start()
            if self.config is not None and start:
                await self._start_guest(self.config)
                if "ready" in self.config.model_fields_set:
                    await self._until_ready()
            await self._supervisor.ready()
            self.events.publish("daemon.ready")
            log.info("%s is ready at %s", self.name, self._directory / "rpc.sock")
            await self._quit.wait()
        finally:
            self._supervisor.notify("STOPPING=1")
            self.events.publish("daemon.stopping")
            await self.jobs.close()
            await self._end_guest()
            for server in servers:
                await server.stop()
            await self._telling.cancel()  # last: who watches us shall see that the end goes on
            self._supervisor.close()
            lock.release()

    def _servers(self) -> list[_Server]:
        service, access, place = Service(self.guest, self), self._access, self._directory
        # with roles anybody may connect, and is told what they may
        mode = 0o666 if access.restricted else 0o660
        self._open_place()
        servers: list[_Server] = [
            self.guest.xenstore_socket(place / "xenstored.sock"),
            RpcServer(service, place / "rpc.sock", access.role, mode),
            RpcServer(service, place / "rpc-ro.sock", access.look, 0o666),
            ConsoleSocket(self.guest.consoles, place / "console0.sock", "0", access.role, mode),
        ]
        if self._http:
            from xenpvd.rpc.http import HttpServer  # aiohttp takes its time to import

            servers.append(HttpServer(service, place / "http.sock", access.role, mode))
        if self._qmp:
            from xenpvd.rpc.qmp.server import QmpServer

            servers.append(QmpServer(service, place / "qmp.sock", access.role, mode))
        return servers

    def _open_place(self) -> None:
        """The sockets' folder is for all who may connect to them."""
        place, restricted = self._directory, self._access.restricted
        with contextlib.suppress(OSError):  # it is somebody else's, who has decided
            place.chmod(0o751 if restricted else 0o750)  # as another definition's time has left it
        closed = [path for path in (place, place.parent) if not path.stat().st_mode & 0o001]
        if restricted and closed:
            log.warning("%s is closed to others: who has a role by [access] cannot connect", closed[0])

    async def _start_guest(self, config: GuestConfig) -> None:
        """A second signal ends the start, too: its files may lie on storage that hangs."""
        starting = self._tasks.spawn(self.guest.start(config), "first start")
        hurry = self._tasks.spawn(self._at_once.wait(), "second signal")
        await asyncio.wait({starting, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not starting.done():
            starting.cancel()
            raise Busy("cannot start: told to end twice meanwhile.", by="signal")
        await starting

    async def _until_ready(self) -> None:
        """As the definition says; or until it will not be, or the daemon is told to end."""
        ready = self._tasks.spawn(self.guest.wait("ready", _FOREVER), "readiness")
        quit = self._tasks.spawn(self._quit.wait(), "end before readiness")
        await asyncio.wait({ready, quit}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        quit.cancel()

    async def _end_guest(self) -> None:
        """Ask it to shut down, for at most the stop time; then, or on a second signal, end it.

        A paused guest is resumed for that: what it has not written to its disks shall not be lost. One that
        has never run has nothing to lose.
        """
        self.guest.no_more_lives()
        asking = not self._at_once.is_set()
        if asking and self.guest.state is Runstate.PAUSED and self.guest.progress.has_reached(Phase.SHIM):
            with contextlib.suppress(StateError):  # it has just ended by itself
                await self.guest.resume()
        if asking and self.guest.state is Runstate.RUNNING:
            asked = self._tasks.spawn(
                self.guest.shutdown("poweroff", self._stop_timeout, "destroy"), "shutdown at the end"
            )
            hurry = self._tasks.spawn(self._at_once.wait(), "second signal")
            await asyncio.wait({asked, hurry}, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            asked.cancel()
        await self.guest.close()
        await self._tasks.cancel()

    async def _tell_status(self) -> None:
        changes, _, _ = self.events.subscribe(("guest.state", "guest.boot"))
        self._supervisor.status(self._status())
        async for _ in changes:
            self._supervisor.status(self._status())

    def _status(self) -> str:
        """The guest's state, and how it came to that, or how far its boot is."""
        progress = self.guest.progress
        why = progress.reason or (progress.phase if progress.state is Runstate.RUNNING else None)
        return f"{progress.state}: {why}" if why else str(progress.state)

    def info(self) -> DaemonInfo:
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        return DaemonInfo(
            name=self.name,
            version=xenpvd.__version__,
            api=API,
            pid=os.getpid(),
            epoch=self.events.epoch,
            started=self._started,
            loop=loop,
            features=FEATURES,
        )

    def as_run(self, config: GuestConfig) -> GuestConfig:
        """``config`` as this daemon runs it: its own options come first."""
        return config if self._accel is None else config.model_copy(update={"accel": self._accel})

    def quit(self, guest: str) -> None:
        """End, as by SIGTERM. ``guest`` is what becomes of one that is there: ``fail`` raises
        :class:`StateError`, ``shutdown`` asks it, ``destroy`` does not, as a second signal."""
        if guest == "fail" and not self._quit.is_set():
            self.guest.check_over("end the daemon")
        log.info("daemon.quit: ending")
        if guest == "destroy":
            self._at_once.set()
        self._quit.set()

    async def reload(self) -> Reloaded:
        """Read the definition's file anew, and open log files anew, as ``logrotate`` wants it.

        Raises :class:`Unsupported` without such a file, what is wrong with it (:class:`BadConfig`),
        and :class:`HostError` for a log that cannot be written; all is as before then.
        """
        self.guest.consoles.reopen_logs()
        file = self._file
        if file is None or self.config is None:
            why = "this daemon was started without a definition's file"
            cure = "Start it with --config FILE, or give the guest its definition with guest.start."
            raise Unsupported(f"cannot reload: {why}. {cure}", feature="reload")
        async with self._reloading:
            before = self.config
            found = await in_thread(partial(load, file))
            # with another name the guest would not be called as this daemon's folder any more
            config = self.as_run(found.model_copy(update={"name": before.name}))
            access = await in_thread(partial(Access, config.access))
            applied, next_start, _ = await self.guest.redefine(before, config)
            self.config = config
            next_daemon = ("name",) if found.name != before.name else ()
            told = self._let_in(access, Reloaded(applied, next_start, next_daemon))
        self.events.publish("daemon.reloaded", **asdict(told))
        words = [", ".join(paths) or "nothing" for paths in (told.applied, told.next_start, told.next_daemon)]
        log.info("reloaded %s: applied %s; at the next start %s; with a new daemon %s", file, *words)
        return told

    def _let_in(self, access: Access, told: Reloaded) -> Reloaded:
        """Roles for who connects from now on; what is ``told`` with them. Only a new daemon can have none any
        more: who is connected, or about to be, would be taken for one whom the sockets' modes have let in,
        and may do everything."""
        paths = tuple(differences(self._access.config, access.config, "access."))
        if not paths:
            return told
        if not access.restricted:
            return replace(told, next_daemon=told.next_daemon + paths)
        opened = not self._access.restricted
        self._access.become(access)
        if opened:
            self._open_place()
            for name in ("rpc.sock", "console0.sock", "http.sock", "qmp.sock"):
                with contextlib.suppress(OSError):
                    (self._directory / name).chmod(0o666)
        return replace(told, applied=told.applied + paths)

    def _on_hangup(self) -> None:
        self._telling.spawn(self._reload_on_signal(), "reload on SIGHUP")

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except Unsupported:
            log.info("SIGHUP: log files are opened anew")
        except XenpvdError as fault:
            log.error("SIGHUP: %s", fault)

    def _guest_over(self) -> None:
        if self.config is not None:
            self._quit.set()

    def _on_signal(self, signum: int) -> None:
        log.info("%s: ending", signal.Signals(signum).name)
        if self._quit.is_set():
            self._at_once.set()
        self._quit.set()

    def _on_loop_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        fault = context.get("exception")
        if isinstance(fault, OSError) and fault.errno in (errno.EMFILE, errno.ENFILE) and "socket" in context:
            if time.monotonic() >= self._full_until:  # asyncio says so for each client that waits
                self._full_until = time.monotonic() + FULL_PAUSE
                log.warning("no client is taken: %s. Raise the limit (LimitNOFILE).", fault.strerror)
            return
        log.error("in the loop: %s", context.get("message"), exc_info=fault)
        if fault is not None and "handle" in context:  # a callback of ours; transports' faults are theirs
            self.guest.fault("callback", fault)
