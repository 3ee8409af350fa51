"""Servers without a guest: an idle xenpvd, one that echoes lines, and QEMU's monitor; and a client of any."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from bench import qemu

ECHO = """
import asyncio, sys, uvloop
async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1], limit=1 << 20)
    await server.serve_forever()
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""

PING = {
    "xenpvd": b'{"jsonrpc":"2.0","method":"daemon.ping","id":1}\n',
    "echo": b'{"jsonrpc":"2.0","method":"daemon.ping","id":1}\n',
    "qemu": b'{"execute":"%s","id":1}\n' % qemu.PING.encode(),
}


def environment(folder: Path) -> dict[str, str]:
    """For Python as it is where it was installed: with its bytecode kept, here in ``folder``."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def memory(pid: int) -> float:
    """MiB that are this process's only, and its part of what it shares (its PSS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def cpu(pid: int) -> float:
    """µs that its threads have run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3


class Server:
    """One of the peers, and how it is spoken to. Its start is awaited, if it is not for many at once."""

    def __init__(
        self, name: str, folder: Path, cpus: set[int] | None = None, *, number: int = 0, wait: bool = True
    ) -> None:
        """On these ``cpus`` only; ``number`` tells several of a name apart."""
        self.name = name
        self.greets = name != "echo"
        guest = f"bench{number}"
        self.path = folder / f"{name}{number}.sock"
        if name == "xenpvd":
            self.path = folder / "xenpvd" / guest / "rpc.sock"
        self.path.unlink(missing_ok=True)
        self._begin = time.monotonic()
        self._process = subprocess.Popen(
            self.argv(folder, guest),
            stderr=subprocess.DEVNULL,
            env=environment(folder),
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
        )
        self.pid = self._process.pid
        #: seconds until it had answered
        self.start_up = self.answered() if wait else 0.0

    def argv(self, folder: Path, guest: str) -> list[str | Path]:
        if self.name == "xenpvd":
            words = ["--name", guest, "--run-dir", f"{folder / 'xenpvd'}", "--log-level", "warning"]
            return [sys.executable, "-m", "xenpvd", *words]
        if self.name == "echo":
            return [sys.executable, "-c", ECHO, self.path]
        none = [*qemu.get(), "-M", "none", "-nodefaults", "-display", "none", "-name", guest]
        return [*none, "-qmp", f"unix:{self.path},server=on,wait=off"]

    def answered(self) -> float:
        """Wait for an answer; seconds from the process's start until then."""
        try:
            one = self._first(self._begin + 120)
        except BaseException:
            self.close()
            raise
        one.socket.sendall(PING[self.name])
        one.wait()
        seconds = time.monotonic() - self._begin
        one.close()
        return seconds

    def _first(self, end: float) -> Connection:
        while True:
            try:
                return Connection(self)
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
            time.sleep(0.001)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class Connection:
    """A client with one call at a time. Raises ``OSError`` if it cannot connect."""

    def __init__(self, server: Server) -> None:
        self.replies: list[bytes] = []
        self.asked = 0
        self.since = 0.0
        self._connect(server)
        if server.greets:
            while b'"LIMIT"' in (hello := self.wait()):  # those before us have left, and it has yet to see it
                self.close()
                self._connect(server)
            assert b'"daemon.hello"' in hello or b'"QMP"' in hello, hello
        if server.name == "qemu":
            self.socket.sendall(b'{"execute":"qmp_capabilities"}\n')
            assert b'"return"' in self.wait()

    def _connect(self, server: Server) -> None:
        self._rest = b""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(server.path))
        except OSError:
            self.socket.close()
            raise

    def wait(self) -> bytes:
        """The next line."""
        while (line := self.take()) is None:
            pass
        return line

    def take(self) -> bytes | None:
        """What has come, if that is a line to its end."""
        data = self.socket.recv(1 << 18)
        assert data, "the connection ended"
        self._rest += data
        if not self._rest.endswith(b"\n"):
            return None
        line, self._rest = self._rest, b""
        return line

    def close(self) -> None:
        self.socket.close()
