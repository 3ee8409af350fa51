"""The engine over its processes: what happens when there is none for a while."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.engine import SIZE, make_image, make_job, needs_engine
from xenpvd.abi import vhost_user as abi
from xenpvd.backends.blkif import engine as engine_module
from xenpvd.backends.blkif import engine_process
from xenpvd.backends.blkif.engine import QUEUES, Engine
from xenpvd.backends.blkif.engine_process import EngineFault
from xenpvd.tasks import in_thread

pytestmark = needs_engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.qcow2", "qcow2")


class _Engine(Engine):
    """With an image of its own."""

    def __init__(self, path: Path, *, lossy: bool = True) -> None:
        self.fd = os.open(path, os.O_RDWR)
        super().__init__(make_job(self.fd, QUEUES), "the image", ctypes.c_int32(0), lossy=lossy)

    async def ended(self) -> None:
        await super().ended()
        os.close(self.fd)


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[Engine]:
    engine = _Engine(path)
    await engine.start()
    yield engine
    engine.close()
    await engine.ended()


def pid(engine: Engine) -> int:
    found = engine.info().pid
    assert found is not None
    return found


async def test_queues_are_given_and_taken_back(engine: Engine) -> None:
    taken = [engine.take_queue() for _ in range(QUEUES - 1)]
    with pytest.raises(OSError, match="no more queues"):
        engine.take_queue()
    for queue in taken:
        await in_thread(queue.flush)
        await in_thread(lambda: engine.give_back(queue))  # noqa: B023 - it is done at once
    await asyncio.sleep(0)
    assert sorted(queue.index for queue in taken) == list(range(1, QUEUES))
    for queue in [engine.take_queue() for _ in range(QUEUES - 1)]:
        await in_thread(queue.flush)  # goes on where the user before has stopped
        engine.give_back(queue)


async def test_it_tries_again_and_again(
    engine: Engine, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    engine.on_trouble = told.put_nowait
    program, works = tmp_path / "engine", tmp_path / "works"
    program.write_text(
        f'#!/bin/sh\n[ -e {works} ] && exec qemu-storage-daemon "$@"\n'
        'echo "qemu-storage-daemon: the moon is full" >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(engine_process, "find", lambda: f"{program}")
    first = pid(engine)
    os.kill(first, signal.SIGKILL)
    waiting = asyncio.gather(in_thread(lambda: engine.own_queue.flush()))
    gone = await told.get()
    assert gone == f"qemu-storage-daemon {first} of the image was killed by SIGKILL. " + (
        "What was under way is done again."
    )
    for _ in range(2):
        why = await told.get()
        assert "the image cannot be started again: the moon is full. Requests wait." in why
    assert engine.info().pid is None
    with pytest.raises(EngineFault, match="just being started again"):
        await engine.resize(2 * SIZE)
    works.write_text("")
    await waiting
    assert pid(engine) != first and engine.restarts >= 3


async def test_an_image_that_has_become_smaller_is_not_served(engine: Engine, path: Path) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    engine.on_trouble = told.put_nowait
    engine._device = engine_module.Device(2 * SIZE, 0)
    os.kill(pid(engine), signal.SIGKILL)
    await told.get()
    assert f"the image has {SIZE} bytes, and had {2 * SIZE}. Requests wait." in await told.get()


async def test_only_what_an_engine_keeps_to_itself_can_be_lost(path: Path) -> None:
    for lossy, words in ((True, "1 writes since the last flush may be lost"), (False, "done again.")):
        engine = _Engine(path, lossy=lossy)
        await engine.start()
        told: asyncio.Queue[str] = asyncio.Queue()
        engine.on_trouble = told.put_nowait
        queue = engine.own_queue
        await in_thread(lambda: queue.transfer(abi.VIRTIO_BLK_T_OUT, 0, [memoryview(bytes(512))]))  # noqa: B023
        os.kill(pid(engine), signal.SIGKILL)
        assert words in await told.get()
        assert bool(engine._flush_errno.value) is lossy
        engine.close()
        await engine.ended()


async def test_another_process_takes_over_and_nobody_is_told_of_a_fault(engine: Engine) -> None:
    told: list[str] = []
    engine.on_trouble = told.append
    before, queue = pid(engine), engine.take_queue()
    await in_thread(lambda: queue.transfer(abi.VIRTIO_BLK_T_OUT, 0, [memoryview(b"x" * 512)]))
    await in_thread(queue.flush)
    assert await engine.renew(SIZE) == SIZE
    assert pid(engine) != before and engine.restarts == 1 and told == []
    view = memoryview(bytearray(512))
    await in_thread(lambda: queue.transfer(abi.VIRTIO_BLK_T_IN, 0, [view]))
    assert bytes(view) == b"x" * 512
    engine.give_back(queue)


async def test_another_process_that_does_not_come(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    engine.on_trouble = told.put_nowait
    program = tmp_path / "engine"
    program.write_text('#!/bin/sh\necho "qemu-storage-daemon: the moon is full" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(engine_process, "find", lambda: f"{program}")
    monkeypatch.setattr(engine_module, "START_TIMEOUT", 0.2)
    with pytest.raises(EngineFault, match=r"it has not begun anew in 0\.2 s\. Requests wait"):
        await engine.renew(SIZE)
    assert "the image cannot be started again: the moon is full. Requests wait." in await told.get()
    with pytest.raises(EngineFault, match="just being started again"):
        await engine.renew(SIZE)


async def test_closing_ends_who_waits(path: Path) -> None:
    engine = _Engine(path)
    await engine.start()
    os.kill(pid(engine), signal.SIGSTOP)
    queue = engine.take_queue()

    def wait() -> None:
        with pytest.raises(OSError, match="does not answer"):
            queue.flush()
        engine.give_back(queue)

    waiting = asyncio.gather(in_thread(wait))
    await asyncio.sleep(0)
    engine_module.END_TIMEOUT, before = 0.2, engine_module.END_TIMEOUT
    try:
        engine.close()
        await engine.ended()
    finally:
        engine_module.END_TIMEOUT = before
    await waiting


async def test_a_failed_start_leaves_nothing(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    path.write_bytes(bytes(4096))
    engine = _Engine(path)
    with pytest.raises(EngineFault, match="Image is not in qcow2 format"):
        await engine.start()
    await engine.ended()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
