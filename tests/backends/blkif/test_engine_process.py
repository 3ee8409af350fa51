"""One process of the engine: how it begins, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import SIZE, make_image, make_job, needs_engine
from xenpvd.backends.blkif import engine_process
from xenpvd.backends.blkif.engine_process import EngineFault, EngineProcess, Job
from xenpvd.errors import Unsupported


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.qcow2", "qcow2")


@pytest.fixture
def job(path: Path) -> Iterator[Job]:
    fd = os.open(path, os.O_RDWR)
    yield make_job(fd)
    os.close(fd)


@needs_engine
async def test_it_begins_and_ends(job: Job) -> None:
    process = await EngineProcess.start(job)
    assert process.device.size == SIZE and process.device.max_discard > 0
    assert process.version[0].isdigit()
    assert {"node-name", "image"} <= (await process.execute("query-named-block-nodes"))[0].keys()
    with pytest.raises(EngineFault, match="nothing has not been found"):
        await process.execute("nothing")
    process.terminate()
    await process.exited.wait()
    assert process.end == "ended with status 0"
    with pytest.raises(EngineFault, match="it has gone"):
        await process.execute("query-version")
    process.kill()  # of what has ended is harmless


@needs_engine
async def test_nobody_else_can_reach_it(job: Job) -> None:
    """The names of its sockets are gone."""
    process = await EngineProcess.start(job)
    fds = Path(f"/proc/{process.pid}/fd").iterdir()
    mine = {os.readlink(fd)[8:-1] for fd in fds if stat.S_ISSOCK(fd.stat().st_mode)}  # noqa: PTH115
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = [words[7] for words in sockets if words[6] in mine and len(words) > 7]
    process.kill()
    await process.exited.wait()
    assert process.end == "was killed by SIGKILL"
    assert names and not any(name.startswith("@") or Path(name).exists() for name in names)


@needs_engine
async def test_its_own_words_why_it_does_not_begin(job: Job) -> None:
    job.nodes[0]["filename"] = "/usr/missing"
    with pytest.raises(EngineFault, match=r"^Could not open '/usr/missing': No such file or directory$"):
        await EngineProcess.start(job)


@needs_engine
async def test_one_that_does_not_begin_is_not_waited_for_for_ever(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setattr(engine_process, "find", lambda: f"{program}")
    monkeypatch.setattr(engine_process, "START_TIMEOUT", 0.5)
    begun: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            begun.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(EngineFault, match=r"it has not opened the image in 0\.5 s"):
        await EngineProcess.start(job)
    assert [child.returncode for child in begun] == [-signal.SIGKILL]


@needs_engine
def test_it_does_not_outlive_the_daemon(job: Job) -> None:
    code = (
        "import asyncio\n"
        "from tests.fakes.engine import make_job\n"
        "from xenpvd.backends.blkif.engine_process import EngineProcess\n"
        "async def main():\n"
        f"    process = await EngineProcess.start(make_job({job.fds[0]}))\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, pass_fds=job.fds) as daemon:
        assert daemon.stdout is not None
        engine = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.send_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(engine, select.POLLIN)
    assert poll.poll(20_000), "it is still there"
    os.close(engine)


@needs_engine
async def test_it_opens_nothing_but_what_it_is_given(job: Job, path: Path) -> None:
    process = await EngineProcess.start(job)
    await process.execute("block_resize", **{"node-name": "disk", "size": 2 * SIZE})
    await process.destroy()
    other = make_image(path.with_name("other"), "qcow2")
    job.nodes[0]["filename"] = f"{other}"
    with pytest.raises(EngineFault, match=f"^Could not open '{other}': Permission denied$"):
        await EngineProcess.start(job)


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_PATH", "/nowhere")
    with pytest.raises(Unsupported, match="bookworm qemu-system-common"):
        engine_process.find()
