"""docs/examples/orchestrator.py with a real guest: what it shows is what the guest has printed, all of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Daemon
from xenpvd.client import Event, connect

HOUSE = Path(__file__).parents[2]
TEXT = b"here is xvdb\n"


@pytest.fixture
def definition(definition: dict[str, Any], folder: Path) -> dict[str, Any]:
    return definition | {"console": {"log": str(folder / "console.log"), "log_timestamps": False}}


@pytest.fixture
def orchestrator(daemon: Daemon, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program, begun; its output goes to files."""
    (folder / "data.img").write_bytes(TEXT.ljust(1 << 20, b"\0"))
    program = [sys.executable, str(HOUSE / "docs/examples/orchestrator.py")]
    arguments = [str(daemon.file), str(folder / "data.img"), str(daemon.run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([*program, *arguments], stdout=out, stderr=err, env=environment)
    yield process
    if process.poll() is None:  # the test has failed
        process.kill()
        process.wait()
        daemon.ctl("destroy", daemon.name)


async def appears(socket: Path) -> None:
    async with connect(socket, timeout=30, wait=120):
        pass


async def has_xvdb(socket: Path) -> None:
    async with connect(socket, timeout=30) as guest:
        async for event in guest.events("drive.state", since=0):
            assert isinstance(event, Event), event
            if (event.data["vdev"], event.data["frontend"]) == ("xvdb", "Connected"):
                return


def test_a_guest_from_its_start_to_its_end(
    daemon: Daemon, orchestrator: subprocess.Popen[bytes], folder: Path
) -> None:
    socket = daemon.run_dir / daemon.name / "rpc.sock"
    asyncio.run(appears(socket))
    daemon.join().at_the_shell()
    asyncio.run(asyncio.wait_for(has_xvdb(socket), 60))
    assert daemon.sh("head -n 1 /dev/xvdb") == TEXT.decode().strip()

    (viewer,) = daemon.call("console.viewers")
    daemon.call("console.kick", viewer=viewer["viewer"])  # its connection is lost; it comes back
    assert daemon.sh("echo $((6 * 7)) lives") == "42 lives"
    orchestrator.terminate()
    assert orchestrator.wait(90) == 0, (folder / "err").read_text()
    daemon.gone()
    shown = (folder / "out").read_bytes()
    assert shown == (folder / "console.log").read_bytes()
    assert b"Linux version" in shown and b"42 lives" in shown and b"reboot: " in shown
    told = (folder / "err").read_text()
    assert "-- xvdb is Connected, 1048576 bytes" in told and "-- stopped after " in told
