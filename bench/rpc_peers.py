"""What bench.rpc measures: xenpvd, a server that echoes lines, and QEMU's monitor, and a client of any."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

QEMU = "qemu-system-x86_64"

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


class Server:
    """One of the peers, and how it is spoken to."""

    def __init__(self, name: str, folder: Path, cpu: int) -> None:
        self.name = name
        self.greets = name != "echo"
        self.path = folder / "xenpvd/bench/rpc.sock" if name == "xenpvd" else folder / f"{name}.sock"
        argv: list[str | Path] = ["taskset", "-c", str(cpu)]
        if name == "xenpvd":
            argv += [sys.executable, "-m", "xenpvd", "--name", "bench", "--run-dir", folder / "xenpvd"]
            argv += ["--log-level", "warning"]
        elif name == "echo":
            argv += [sys.executable, "-c", ECHO, self.path]
        else:
            argv += [QEMU, "-M", "none", "-nodefaults", "-display", "none"]
            argv += ["-qmp", f"unix:{self.path},server=on,wait=off"]
        self.path.unlink(missing_ok=True)
        begin = time.monotonic()
        self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        try:
            self._first(begin + 30).close()
        except BaseException:
            self.close()
            raise
        #: seconds until it had greeted
        self.start_up = time.monotonic() - begin

    def _first(self, end: float) -> Connection:
        while True:
            try:
                return Connection(self)
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
            time.sleep(0.001)

    def cpu(self) -> float:
        """µs that its main thread has run; no other has anything to do."""
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e3

    def memory(self) -> float:
        """MiB that are this process's only (its PSS)."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class Connection:
    """A client with one call at a time."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(server.path))
        self._rest = b""
        self.replies: list[bytes] = []
        self.asked = 0
        self.since = 0.0
        if server.greets:
            assert b'"daemon.hello"' in (hello := self.wait()) or b'"QMP"' in hello, hello
        if server.name == "qemu":
            self.socket.sendall(b'{"execute":"qmp_capabilities"}\n')
            assert b'"return"' in self.wait()

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
