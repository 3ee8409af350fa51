"""One guest's console by all its doors, over a reboot: they show the same bytes, and so do its log files."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lab import guest as assets
from tests.lab.conftest import Daemon


@pytest.fixture
def definition(definition: dict[str, Any], folder: Path) -> dict[str, Any]:
    console = {
        "log": str(folder / "console.log"),
        "xen_log": str(folder / "xen.log"),
        "log_timestamps": False,
        "match": [r"^\d+-by-hand", "never printed"],
    }
    return definition | {"console": console}


async def watch(path: Path, boot: int) -> tuple[bytes, dict[str, Any]]:
    """All that a WebSocket shows up to the prompt of that boot, and its note of where the boot begins."""
    shown, opened = b"", {}
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as web:
        async with web.ws_connect("/console/0?mode=ro") as ws:
            async for message in ws:
                if message.type is aiohttp.WSMsgType.BINARY:
                    shown += message.data
                elif (note := json.loads(message.data))["type"] == "opened":
                    opened = note
                if opened.get("boot") == boot and assets.PROMPT.encode() in shown[opened["offset"] :]:
                    return shown, opened
    raise AssertionError(f"it ended before boot {boot} had come; shown: {shown[-2000:]!r}")


def test_every_door_shows_the_same_over_a_reboot(daemon: Daemon, folder: Path) -> None:
    daemon.start("--http").at_the_shell()
    place = daemon.run_dir / daemon.name
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(60)
        raw.connect(str(place / "console0.sock"))
        raw.sendall(b"echo $((6 * 7))-by-hand\n")
        found = daemon.call("console.wait", regex=r"^(\d+)-by-hand\r$", timeout=60)
        assert found["groups"] == ["42"]
        (viewer,) = daemon.call("console.viewers")
        assert viewer["mode"] == "rw" and viewer["who"].endswith("console0.sock")

        daemon.call("guest.shutdown", mode="reboot", timeout=60)
        shown, opened = asyncio.run(watch(place / "http.sock", 2))
        seen = b""
        while len(seen) < len(shown):
            seen += raw.recv(65536)
    assert seen[: len(shown)] == shown
    assert b"42-by-hand" in shown[: opened["offset"]] and b"Linux version" in shown[opened["offset"] :]

    (match,) = daemon.call("events.history", names=["console.match"])
    assert match["data"]["text"] == "42-by-hand" and match["data"]["end"] == found["end"] - 1
    told = [one["data"]["boot"] for one in daemon.call("events.history", names=["console.opened"])]
    assert told == [1, 2]

    daemon.call("console.clear")
    assert daemon.ctl("log", daemon.name).stdout == ""
    daemon.call("guest.shutdown", timeout=60)
    daemon.gone()
    assert (folder / "console.log").read_bytes().startswith(shown)
    assert b"reboot: " in (folder / "console.log").read_bytes()[len(shown) :]
    assert (folder / "xen.log").read_text().count("Xen version") == 2
