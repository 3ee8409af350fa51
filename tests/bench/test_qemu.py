"""Which QEMU is taken, and how its monitor is spoken to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import qemu


def program(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian 1:{version})'\n")
    path.chmod(0o755)
    return path


def test_the_machines_own_is_taken_if_it_is_new_enough_else_the_unpacked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENPVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    program(tmp_path / "bin/qemu-system-x86_64", "7.2.22")
    assert qemu.find() == ()
    kept = program(tmp_path / "cache/assets/qemu/usr/bin/qemu-system-x86_64", "10.0.2")
    assert qemu.find()[0] == str(kept) and qemu.version(qemu.find()) == "10.0.2"
    program(tmp_path / "bin/qemu-system-x86_64", "8.2.0")
    assert qemu.find() == ("qemu-system-x86_64",)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[qemu.Monitor]:
    """Of a machine in which a device goes, and a word about something else comes between."""

    def say(file: Any, *messages: dict[str, Any]) -> None:
        for message in messages:
            file.write(json.dumps(message) + "\n")
        file.flush()

    def serve() -> None:
        peer, _ = server.accept()
        with peer, peer.makefile("rw") as file:
            say(file, {"QMP": {}})
            for line in file:
                match json.loads(line)["execute"]:
                    case "device_del":
                        say(file, {"event": "RTC_CHANGE"}, {"return": {}})
                        say(file, {"event": "DEVICE_DELETED", "data": {"path": "/z"}})
                        say(file, {"event": "DEVICE_DELETED", "data": {"device": "z", "path": "/z"}})
                    case "query-status":
                        say(file, {"event": "STOP"}, {"return": {"status": "running"}})
                    case "qmp_capabilities":
                        say(file, {"return": {}})
                    case _:
                        say(file, {"error": {"class": "CommandNotFound", "desc": "no such command"}})

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp.sock"))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        one = qemu.Monitor(tmp_path / "qmp.sock")
        yield one
        one.close()
        thread.join()


def test_a_reply_is_told_from_events(monitor: qemu.Monitor) -> None:
    assert monitor.call("query-status") == {"status": "running"}


def test_an_event_is_waited_for_with_its_data(monitor: qemu.Monitor) -> None:
    monitor.call("device_del", id="z")
    monitor.expect("DEVICE_DELETED", device="z")
    assert monitor.call("query-status") == {"status": "running"}


def test_a_refusal_is_raised(monitor: qemu.Monitor) -> None:
    with pytest.raises(RuntimeError, match="nonsense: no such command"):
        monitor.call("nonsense")


def test_no_monitor_is_waited_for_in_vain(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        qemu.Monitor(tmp_path / "qmp.sock", limit=0)
