"""A definition that is read anew: by RPC and by SIGHUP, what counts at once, and what changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.machine import FakeMachine
from tests.test_daemon import Hall, halls
from xenpvd.config import GuestConfig, load
from xenpvd.errors import BadConfig
from xenpvd.sockets import Credentials

__all__ = ["halls"]  # a fixture


def written(file: Path, definition: GuestConfig, **changes: Any) -> GuestConfig:
    """``file`` says it, with ``changes``; as TOML, of which JSON's objects are none."""
    values = definition.model_dump(mode="json", exclude_unset=True) | changes
    tables = {key: values.pop(key) for key in ("shim", "console", "metrics", "access") if key in values}
    disks = values.pop("disk", [])
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for name, table in [*tables.items(), *(("[disk]", disk) for disk in disks)]:
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    file.write_text("\n".join(lines) + "\n")
    return load(file)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def told(**found: list[str]) -> dict[str, list[str]]:
    return {"applied": [], "next_start": [], "next_daemon": [], **found}


async def test_reload_applies_what_may_change(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    file, log = tmp_path / "web1.toml", tmp_path / "console.log"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file))
    peer = await hall.peer()
    assert await peer.result("daemon.reload") == told()
    disk = {**definition.model_dump(mode="json")["disk"][0], "limits": {"ops_per_second": 50}}
    changes: dict[str, Any] = {
        "memory": 256, "on_crash": "destroy", "metrics": {"labels": {"tenant": "blue"}},
        "console": {"log": str(log)}, "disk": [disk],
    }  # fmt: skip
    written(file, definition, **changes)
    done = await peer.result("daemon.reload")
    assert sorted(done["applied"]) == ["console.log", "disk.0.limits", "metrics.labels", "on_crash"]
    assert (done["next_start"], done["next_daemon"]) == (["memory"], [])
    (event,) = hall.daemon.events.history(("daemon.reloaded",))[1:]
    assert event.data == {key: tuple(value) for key, value in done.items()}
    assert (await peer.result("drive.list"))[0]["limits"]["ops_per_second"] == 50
    assert (await peer.result("guest.stats"))["labels"] == {"tenant": "blue"}
    assert (await peer.result("guest.config"))["memory"] == 128, "as it runs"
    machines[0].guest_prints(b"hello\n")
    await peer.result("guest.wait", **{"for": "console:hello"})
    assert await peer.result("daemon.reload") == told(next_start=["memory"]), "it still waits"
    # the new policy counts for this life, the memory not even after a reboot
    await peer.result("guest.reset")
    assert machines[1].config.ram == 128 << 20
    machines[1].end("crash", "BUG")
    async with asyncio.timeout(5):
        await hall.ended  # on_crash = destroy
    assert log.read_bytes() == b"hello\n"


async def test_the_rest_counts_with_the_next_start(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    file = tmp_path / "web1.toml"
    preserved = written(file, definition, on_poweroff="preserve")
    halls.append(hall := Hall(tmp_path / "run", preserved, file=file, accel="kvm"))
    peer = await hall.peer()
    written(file, definition, on_poweroff="preserve", memory=256)
    assert (await peer.result("daemon.reload"))["next_start"] == ["memory"]
    machines[0].end("poweroff")
    await peer.result("guest.wait", **{"for": "stopped"})
    await peer.result("guest.start")
    assert (machines[1].config.ram, machines[1].config.accel) == (256 << 20, "kvm")
    assert await peer.result("daemon.reload") == told()


@pytest.mark.parametrize("how", ["rpc", "signal"])
async def test_a_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "web1.toml"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file))
    peer = await hall.peer()
    before = await peer.result("guest.config")
    with pytest.raises(BadConfig):
        written(file, definition, memory=1, on_crash="sleep", metrics={"labels": {"new": "1"}})
    if how == "rpc":
        fault = await peer.fault("daemon.reload")
        assert fault["code"] == -32602
        assert {each["loc"] for each in fault["data"]["errors"]} == {"memory", "on_crash"}
    else:
        os.kill(os.getpid(), signal.SIGHUP)
        while "SIGHUP: cannot use" not in caplog.text:
            await peer.result("daemon.ping")
        assert "memory: " in caplog.text and "on_crash: " in caplog.text
    assert await peer.result("guest.config") == before
    file.unlink()
    fault = await peer.fault("daemon.reload")
    assert (fault["code"], fault["data"]["reason"]) == (-32602, "VALIDATION")
    assert fault["message"] == f"cannot read {file}: No such file or directory. Check the path."
    written(file, definition, access={"viewer": ["group:no-such-group"]}, on_crash="destroy")
    assert (await peer.fault("daemon.reload"))["data"]["errors"][0]["loc"] == "access.viewer.0"
    written(file, definition, console={"log": "/proc/none/x"}, on_crash="destroy")
    assert (await peer.fault("daemon.reload"))["data"]["reason"] == "HOST_IO"
    assert await peer.result("guest.config") == before
    assert not hall.daemon.events.history(("daemon.reloaded",))


async def test_a_log_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    file, log = tmp_path / "web1.toml", tmp_path / "console.log"
    halls.append(
        hall := Hall(tmp_path / "run", written(file, definition, console={"log": str(log)}), file=file)
    )
    peer = await hall.peer()
    written(file, definition, console={"log": "/proc/none/x", "log_keep": 1})
    await peer.fault("daemon.reload")
    machines[0].guest_prints(b"hello\n")
    await peer.result("guest.wait", **{"for": "console:hello"})
    await peer.result("daemon.quit", guest="destroy")
    await hall.ended
    assert log.read_bytes() == b"hello\n"


async def test_reload_by_signal(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    file = tmp_path / "web1.toml"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file))
    peer = await hall.peer()
    await peer.result("events.subscribe", names=["daemon.reloaded"])
    written(file, definition, on_reboot="destroy")
    os.kill(os.getpid(), signal.SIGHUP)
    assert (await peer.receive())["params"]["data"] == told(applied=["on_reboot"])


async def test_no_file_to_reload(tmp_path: Path, halls: list[Hall], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    halls.append(hall := Hall(tmp_path / "run", None))
    peer = await hall.peer()
    fault = await peer.fault("daemon.reload")
    assert (fault["code"], fault["data"]["feature"]) == (1008, "reload") and "--config FILE" in fault[
        "message"
    ]
    os.kill(os.getpid(), signal.SIGHUP)
    while "log files are opened anew" not in caplog.text:
        await peer.result("daemon.ping")


async def test_a_guest_by_another_definition_keeps_that(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    file = tmp_path / "web1.toml"
    preserved = written(file, definition, on_poweroff="preserve")
    halls.append(hall := Hall(tmp_path / "run", preserved, file=file))
    peer = await hall.peer()
    machines[0].end("poweroff")
    await peer.result("guest.wait", **{"for": "stopped"})
    other = definition.model_copy(update={"memory": 96, "on_crash": "preserve"})
    await peer.result("guest.start", config=other.model_dump(mode="json"))
    written(file, definition, on_poweroff="preserve", on_crash="destroy", memory=256)
    done = await peer.result("daemon.reload")
    assert done["applied"] == [] and sorted(done["next_start"]) == ["memory", "on_crash"]
    assert (await peer.result("guest.config"))["on_crash"] == "preserve"


async def test_roles_by_reload(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    """Given while it runs; taken away as a whole only by a new daemon."""
    file = tmp_path / "web1.toml"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file))
    peer, access = await hall.peer(), hall.daemon._access
    ann = Credentials(1, 4711, 50, ())
    assert access.role(ann) == "admin" and hall.socket.stat().st_mode & 0o777 == 0o660
    written(file, definition, access={"viewer": ["group:50"]})
    assert (await peer.result("daemon.reload"))["applied"] == ["access.viewer"]
    assert access.role(ann) == "viewer" and hall.socket.stat().st_mode & 0o777 == 0o666
    assert hall.socket.parent.stat().st_mode & 0o777 == 0o751
    written(file, definition, access={"operator": ["group:50"]})
    assert (await peer.result("daemon.reload"))["applied"] == ["access.viewer", "access.operator"]
    assert access.role(ann) == "operator"
    written(file, definition)
    assert await peer.result("daemon.reload") == told(next_daemon=["access.operator"])
    assert await peer.result("daemon.reload") == told(next_daemon=["access.operator"]), "it still waits"
    assert access.role(ann) == "operator" and hall.socket.stat().st_mode & 0o777 == 0o666
    await peer.result("guest.reset")
    assert (await peer.result("guest.status"))["state"] == "running"


async def test_another_name_is_a_new_daemons(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], halls: list[Hall]
) -> None:
    """Its folder and lock are called so."""
    file = tmp_path / "web1.toml"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file))
    peer = await hall.peer()
    written(file, definition, name="other", memory=256, on_poweroff="preserve")
    done = await peer.result("daemon.reload")
    assert done == told(applied=["on_poweroff"], next_start=["memory"], next_daemon=["name"])
    assert (await peer.result("guest.status"))["name"] == definition.name
    machines[0].end("poweroff")
    await peer.result("guest.wait", **{"for": "stopped"})
    await peer.result("guest.start")  # by the same daemon
    assert (await peer.result("guest.config"))["name"] == definition.name
    assert await peer.result("daemon.reload") == told(next_daemon=["name"]), "it still waits"


async def test_another_name_is_told_where_no_guest_has_run_yet(
    tmp_path: Path, definition: GuestConfig, halls: list[Hall]
) -> None:
    file = tmp_path / "web1.toml"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file, start=False))
    peer = await hall.peer()
    written(file, definition, name="other")
    for _ in range(2):
        assert await peer.result("daemon.reload") == told(next_daemon=["name"])


async def test_two_at_once(
    tmp_path: Path,
    definition: GuestConfig,
    machines: list[FakeMachine],
    halls: list[Hall],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one goes on from the first."""
    file = tmp_path / "web1.toml"
    halls.append(hall := Hall(tmp_path / "run", written(file, definition), file=file))
    first, second = await hall.peer(), await hall.peer()
    found = [load(file).model_copy(update={"on_crash": policy}) for policy in ("destroy", "restart")]
    read, go = threading.Event(), threading.Event()

    def slow(path: Path) -> GuestConfig:
        config = found.pop(0)
        read.set()
        assert go.wait(5)
        return config

    monkeypatch.setattr("xenpvd.daemon.load", slow)
    first.request("daemon.reload")
    await asyncio.to_thread(read.wait, 5)
    second.request("daemon.reload")
    await (await hall.peer()).result("daemon.ping")  # it has come, and waits
    go.set()
    replies = [(await peer.receive())["result"] for peer in (first, second)]
    assert replies == [told(applied=["on_crash"])] * 2
    assert hall.daemon.guest.config is not None and hall.daemon.guest.config.on_crash == "restart"
