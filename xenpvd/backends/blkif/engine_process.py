"""One process of a block engine: a qemu-storage-daemon that serves one image to us, and to nobody else.

It is given sockets that have no name any more when it has begun, and dies with us. QMP steers it, vhost-user
serves the image.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenpvd.backends.blkif import confine
from xenpvd.backends.blkif.vhost import Device, Vhost, VhostFault
from xenpvd.errors import Unsupported

log = logging.getLogger(__name__)

PROGRAM = "qemu-storage-daemon"

#: Seconds that it has to open its image; one on a server that hangs takes for ever.
START_TIMEOUT = 30.0
#: Seconds that a killed one has; one in a call of the kernel's that hangs takes longer.
KILL_TIMEOUT = 2.0
#: Bytes of its words that are kept.
_WORDS = 4096
_LINE = 1 << 20


class EngineFault(Exception):
    """It cannot serve; in its own words, or ours."""


@dataclass(frozen=True, slots=True)
class Job:
    """What it serves: the last of ``nodes`` is called disk. It is given ``fds`` by their numbers."""

    nodes: Sequence[dict[str, Any]]
    fds: Sequence[int]
    readonly: bool
    sector_size: int
    queues: int

    @property
    def export(self) -> dict[str, Any]:
        return {
            "id": "disk",
            "node-name": "disk",
            "writable": not self.readonly,
            "num-queues": self.queues,
            "logical-block-size": self.sector_size,
        }


_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def find() -> str:
    """Where the program is. Raises :class:`Unsupported` with the cure."""
    if (path := shutil.which(PROGRAM, path=_PATH)) is None:
        raise Unsupported(
            f"cannot serve images of other formats than raw: there is no {PROGRAM}. Install it (Debian: "
            "qemu-utils, in bookworm qemu-system-common), or make the image raw: qemu-img convert.",
            feature="image formats",
        )
    return path


class EngineProcess:
    """Made by :meth:`start`, from when on it has ``version`` and ``device``. Loop thread only."""

    version: str
    device: Device
    vhost: Vhost

    def __init__(self, job: Job) -> None:
        """Begins it. Raises ``OSError``, :class:`Unsupported`."""
        program = find()
        self.exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._said = b""
        self._code: int | None = None
        self._asking = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            listener, sock = _listen()
            theirs.callback(listener.close)
            ours.callback(sock.close)
            self._qmp, monitor = socket.socketpair()
            theirs.callback(monitor.close)
            ours.callback(self._qmp.close)
            self._stderr, stderr = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, stderr)
            ours.callback(os.close, self._stderr)
            os.set_blocking(self._stderr, False)
            words = ["--chardev", f"socket,id=qmp,fd={monitor.fileno()}", "--monitor", "chardev=qmp"]
            for node in job.nodes:
                words += ["--blockdev", json.dumps(node)]
            where = {"type": "fd", "str": f"{listener.fileno()}"}
            words += ["--export", json.dumps({"type": "vhost-user-blk", "addr": where, **job.export})]
            files = ",".join(map(str, job.fds))
            confined = [sys.executable, "-IS", confine.__file__, f"{os.getpid()}", files, program]
            # a session of its own: a terminal's Ctrl-C is for us, and what the guest has to write is written
            self._child = subprocess.Popen(
                [*confined, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[monitor.fileno(), listener.fileno(), *job.fds],
                start_new_session=True,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
            )
            self.pid = self._child.pid
            self._pidfd = os.pidfd_open(self.pid)
            ours.pop_all()
        self.vhost = Vhost(sock)
        self._loop.add_reader(self._stderr, self._listen_to_it)
        self._loop.add_reader(self._pidfd, self._has_exited)

    @classmethod
    async def start(cls, job: Job) -> EngineProcess:
        """Raises :class:`EngineFault`, :class:`Unsupported`; nothing is left of it then, or soon."""
        try:
            process = cls(job)
        except OSError as fault:
            raise EngineFault(f"it cannot be started: {fault.strerror}") from None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await process._begin(job.queues)
        except BaseException as fault:
            await process.destroy()
            if isinstance(fault, TimeoutError):
                raise EngineFault(f"it has not opened the image in {START_TIMEOUT:g} s") from None
            if isinstance(fault, (VhostFault, EngineFault, OSError)):
                raise EngineFault(process.words or str(fault)) from None
            raise
        return process

    async def _begin(self, queues: int) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._qmp, limit=_LINE)
        if self._code is not None:
            self._writer.close()
        qemu = (await self._hear())["QMP"]["version"]["qemu"]
        self.version = ".".join(str(qemu[part]) for part in ("major", "minor", "micro"))
        await self.execute("qmp_capabilities")
        self.device = await self.vhost.begin(queues)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """By QMP. Raises :class:`EngineFault` with its words."""
        async with self._asking:
            if self._writer is None:
                raise EngineFault("it does not listen yet")
            self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            while True:
                answer = await self._hear()
                if "error" in answer:
                    raise EngineFault(str(answer["error"].get("desc")))
                if "return" in answer:
                    return answer["return"]

    async def _hear(self) -> dict[str, Any]:
        assert self._reader is not None
        try:
            line = await self._reader.readline()
            found = json.loads(line) if line else None
        except (OSError, ValueError) as fault:
            raise EngineFault(f"it cannot be understood: {fault}") from None
        if not isinstance(found, dict):
            raise EngineFault("it has gone")
        return found

    @property
    def words(self) -> str:
        """The last fault that it has told of, without its hints and our own words."""
        faults = re.findall(
            rf"^{PROGRAM}: (?:--\w+ .*}}: )?(.+)$", self._said.decode("utf-8", "replace"), re.M
        )
        return faults[-1].strip() if faults else ""

    def terminate(self) -> None:
        """Have it close the image and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def destroy(self) -> None:
        """Kill it, and see that it is gone, if the kernel lets go of it."""
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT):
                await self.exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    # ---- what it does

    def _listen_to_it(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while said := os.read(self._stderr, _WORDS):
                self._said = (self._said + said)[-_WORDS:]
                log.info("%s %d: %s", PROGRAM, self.pid, said.decode("utf-8", "replace").strip())
            self._loop.remove_reader(self._stderr)

    def _has_exited(self) -> None:
        self._code = self._child.wait()
        self._listen_to_it()
        self._loop.remove_reader(self._stderr)
        self._loop.remove_reader(self._pidfd)
        os.close(self._stderr)
        os.close(self._pidfd)
        self.vhost.close()
        if self._writer is not None:  # else it is just being opened
            self._writer.close()
        self._loop.call_soon(self.exited.set)  # behind what that begins

    @property
    def end(self) -> str:
        """How it has ended."""
        code = self._code or 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with status {code}" + (f": {self.words}" if self.words else "")


def _listen() -> tuple[socket.socket, socket.socket]:
    """A listening socket without a name, and one that is connected to it already."""
    with tempfile.TemporaryDirectory(prefix="xenpvd-") as folder:
        path = str(Path(folder, "vhost"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            listener.listen(1)
            sock.connect(path)
        except OSError:
            listener.close()
            sock.close()
            raise
    return listener, sock
