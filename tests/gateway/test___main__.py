"""The command as a process: what it listens at, whom it serves, how it ends, and what it says of faults."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from tests.gateway.conftest import Host
from xenpvd.gateway.__main__ import main

COMMAND = (sys.executable, "-m", "xenpvd.gateway")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """With one token, "secret", of a viewer."""
    tokens = tmp_path / "gateway.tokens"
    tokens.write_text(f"{hashlib.sha256(b'secret').hexdigest()} viewer\n")
    tokens.chmod(0o600)
    file = tmp_path / "gateway.toml"
    file.write_text(f'tokens = "gateway.tokens"\nlisten = ["{tmp_path}/gateway.sock"]\n')
    return file


@contextmanager
def gateway(*command: str, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=fds)
    with process:
        try:
            yield process
        finally:
            process.kill()


async def look(connector: aiohttp.BaseConnector | None, url: str) -> list[str]:
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as web:
        async with web.get(f"{url}/v1/guests", headers={"Authorization": "Bearer secret"}) as reply:
            return [guest["name"] for guest in (await reply.json())["guests"]]


async def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        _, said = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, said
    return said


async def test_it_serves_and_ends(config: Path, host: Host) -> None:
    with gateway(*COMMAND, "--config", str(config), "--run-dir", str(host.run_dir)) as process:
        assert process.stderr is not None
        ready = await asyncio.to_thread(process.stderr.readline)
        path = config.with_name("gateway.sock")
        assert f"the guests of {host.run_dir} are at {path}" in ready
        assert await look(aiohttp.UnixConnector(str(path)), "http://x") == ["web1"]
        assert "Traceback" not in await ended(process)
    assert not path.exists()


async def test_it_reloads(config: Path, host: Host) -> None:
    """By SIGHUP, what is wrong as well as what is right."""
    path = config.with_name("gateway.sock")
    with gateway(*COMMAND, "--config", str(config), "--run-dir", str(host.run_dir)) as process:
        assert process.stderr is not None
        await asyncio.to_thread(process.stderr.readline)
        good = config.read_text()
        for text, told in (("listen = 7", "nothing is reloaded"), (f"names = ['x']\n{good}", ": reloaded")):
            config.write_text(text)
            process.send_signal(signal.SIGHUP)
            assert told in await asyncio.to_thread(process.stderr.readline)
            assert await look(aiohttp.UnixConnector(str(path)), "http://x") == ["web1"]
        await ended(process)


#: what a supervisor does between its fork() and exec(); the first argument is the socket
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
"""


async def test_the_supervisors_socket(config: Path, host: Host) -> None:
    """Who connects before it is up is served all the same."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        fd = sock.fileno()
        start = (sys.executable, "-c", HAND_OVER, str(fd), *COMMAND, "--config", str(config))
        with gateway(*start, "--run-dir", str(host.run_dir), fds=(fd,)) as process:
            assert await look(None, url) == ["web1"]
            said = await ended(process)
    assert url.removeprefix("http://") in said
    assert not config.with_name("gateway.sock").exists(), "what gateway.toml says of it does not count then"


@pytest.mark.parametrize(
    ("text", "status", "why"),
    [
        ("listen = 7", 2, "listen: "),
        ('tokens = "gateway.tokens"\nlisten = ["0.0.0.0:0"]', 2, "which takes TLS. Add [tls]"),
        ('tokens = "missing"', 2, "cannot read "),
        (
            'tokens = "gateway.tokens"\n[tls]\ncertificate = "a"\nkey = "b"',
            2,
            "cannot use tls.certificate, a with b: No such file",
        ),
        ('tokens = "gateway.tokens"\nlisten = ["/missing/gateway.sock"]', 1, "cannot listen at "),
    ],
)
def test_faults(config: Path, text: str, status: int, why: str) -> None:
    config.write_text(text)
    done = CliRunner().invoke(main, ["--config", str(config)])
    assert done.exit_code == status and done.stderr.startswith("xenpvd-gateway: ") and why in done.stderr
    assert done.stderr.count("\n") == 1
