"""What is looked at for a dump, and that what cannot be had keeps nothing else from it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.service import FakeService
from xenpvd import dump
from xenpvd.config import ChannelConfig
from xenpvd.errors import HostError, NotFound, TimedOut
from xenpvd.jobs import Work
from xenpvd.tasks import in_thread
from xenpvd.views import ConsoleChunk, Runstate


def run(work: Work) -> tuple[list[int], dict[str, Any]]:
    """(what it has told of its progress, its result)."""
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


async def made(service: FakeService, file: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files in a dump by name, and its result."""
    work, total = await dump.prepare(service, None, file)
    told, result = await in_thread(lambda: run(work))
    assert told == sorted(told) and told[0] == 0 and told[-1] >= total > 10_000
    with tarfile.open(result["file"]) as tar:
        members = tar.getmembers()
        assert {member.mode for member in members} == {0o600}
        assert {member.name.partition("/")[0] for member in members} == {file.name.partition(".")[0]}
        return {
            member.name.partition("/")[2]: tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in members
        }, result


async def test_all_that_can_be_seen(tmp_path: Path) -> None:
    service = FakeService()
    service.console.print(b"hello\r\n" + b"x" * (3 << 20))
    service.events.publish("drive.error", vdev="xvda", error="\udc80", raw=b"\xff")
    found, result = await made(service, tmp_path / "web1.tar.gz")
    assert result == {
        "file": str(tmp_path / "web1.tar.gz"), "size": (tmp_path / "web1.tar.gz").stat().st_size,
        "core": None, "live": None, "missing": {},
    }  # fmt: skip
    assert next(iter(found)) == "dump.json" and json.loads(found["dump.json"])["missing"] == {}
    assert {name.removesuffix(".json") for name in found} >= {
        "status", "definition", "stats", "vcpus", "memory", "evtchn", "grants", "hypercalls", "drives",
        "xenstore", "xenstore-history", "xenstore-quotas", "consoles", "viewers", "events", "log", "daemon",
        "jobs", "tasks", "versions", "threads.txt", "proc/status", "proc/limits", "proc/maps",
        "console/0.log", "console/xen.log",
    }  # fmt: skip
    assert found["console/0.log"] == service.consoles.read("0", 0, None, 1 << 30).data
    assert found["console/xen.log"] == b"(XEN) Xen version 4.17\n"
    assert json.loads(found["status.json"])["state"] == "running"
    assert "rip" in json.loads(found["vcpus.json"])[0]["regs"]
    assert any(node["path"] == "/tool/name" for node in json.loads(found["xenstore.json"]))
    assert json.loads(found["events.json"])[-1]["name"] == "drive.error"
    assert "xenpvd" in json.loads(found["versions.json"])
    assert b"in_thread" in found["threads.txt"] or b"tasks.py" in found["threads.txt"]
    assert b"VmRSS" in found["proc/status"]


async def test_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter22")
    found, _ = await made(FakeService(), tmp_path / "a.tar.gz")
    assert not any(b"hunter22" in data for data in found.values())


async def test_of_a_guest_that_is_over(tmp_path: Path) -> None:
    """What needs a VM is missing, and it is said why; so is what fails by a fault of ours."""
    service = FakeService()
    service.state = Runstate.CRASHED
    service.faults["hypercall_stats"] = ZeroDivisionError("ours")
    found, result = await made(service, tmp_path / "a.tar.gz")
    assert {"vcpus", "memory", "evtchn", "grants", "hypercalls", "stats"} == set(result["missing"])
    assert "is crashed" in result["missing"]["grants"] and result["missing"]["hypercalls"] == "ours"
    assert json.loads(found["dump.json"])["missing"] == result["missing"]
    assert "status.json" in found and "vcpus.json" not in found


async def test_a_vcpu_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService()

    async def none(regs: bool) -> list[Any]:
        raise TimedOut("vCPU 0 does not answer.")

    monkeypatch.setattr(service, "vcpu_list", none)
    _, result = await made(service, tmp_path / "a.tar.gz")
    assert result["missing"] == {"vcpus": "vCPU 0 does not answer.", "stats": "vCPU 0 does not answer."}


async def test_a_channel_that_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService()
    await service.channel_add(ChannelConfig(name="agent", history=4 << 20), False, 1)
    service.consoles.get("agent").history.append(b"x" * (dump.PIECE + 1))
    read = service.consoles.read

    def once(name: str, since: int, ago: float | None, limit: int) -> ConsoleChunk:
        if name == "agent" and since:
            raise NotFound("there is no console agent.", "console", name)
        return read(name, since, ago, limit)

    monkeypatch.setattr(service.consoles, "read", once)
    found, _ = await made(service, tmp_path / "a.tar.gz")
    assert found["console/agent.log"] == b"x" * dump.PIECE and found["console/xen.log"]


async def test_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state/web1"))
    work, _ = await dump.prepare(FakeService(), None, None)
    _, result = await in_thread(lambda: run(work))
    file = Path(result["file"])
    assert file.parent == tmp_path / "state/web1" and file.name.startswith("xenpvd-20")
    assert file.parent.stat().st_mode & 0o777 == 0o700 and file.exists()


async def test_no_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "file/web1"))
    with pytest.raises(HostError, match=r"cannot make .*/file/web1: Not a directory\. Say where"):
        await dump.prepare(FakeService(), None, None)
