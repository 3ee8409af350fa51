"""Disks, and nothing left of them."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes import faults as fakes
from tests.fakes.disk import Disk
from tests.fakes.disks import Rig
from tests.fakes.guest import Guest
from tests.fakes.slow_disk import SlowDisk
from xenpvd.backends.blkif import backend as backend_module
from xenpvd.backends.blkif import build
from xenpvd.backends.blkif import native as native_module
from xenpvd.backends.blkif.image import Image
from xenpvd.errors import Unsupported

SECTORS = 2048


def count_threads() -> int:
    return sum(thread.name != "blocking call" for thread in threading.enumerate())  # those end soon


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    threads = count_threads()
    rig = Rig(tmp_path)
    yield rig
    await rig.close()
    assert rig.faults == []
    assert not rig.gnttab.mapped
    assert all(port.closed for port in rig.evtchn.ports.values())
    assert count_threads() == threads


@pytest.fixture
def no_native_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """No native plane, as without a compiler: a test can step in between the other's calls."""

    def refuse(*args: object, **options: object) -> None:
        raise Unsupported("it is not built", feature="native plane")

    monkeypatch.setattr(backend_module, "NativePlane", refuse)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(0).randbytes(SECTORS * 512))
    return path


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    image = Image.open(path, readonly=False)
    yield image
    image.close()


@pytest.fixture(params=[False, True], ids=["python", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def either_plane(native: bool, request: pytest.FixtureRequest) -> None:
    """What a backend makes is one or the other."""
    if not native:
        request.getfixturevalue("no_native_plane")


@pytest.fixture
def disk(path: Path, native: bool) -> Iterator[Disk]:
    """On either plane."""
    disk = Disk(path, native=native)
    yield disk
    disk.close()
    assert not disk.gnttab.mapped


@pytest.fixture(params=["python", "preadv", "io_uring"])
def engine(request: pytest.FixtureRequest) -> str:
    """What a plane does its I/O with; the last two are the native one's."""
    return str(request.param)


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.build_library(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faults(
    engine: str, faulty_library: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[fakes.NativeFaults | fakes.PythonFaults]:
    """What steps in at the calls of a plane with this engine."""
    if engine == "python":
        yield fakes.PythonFaults(monkeypatch)
        return
    native_module.library.cache_clear()
    monkeypatch.setattr(build, "library", lambda: faulty_library)
    yield fakes.NativeFaults.of(native_module.library())
    native_module.library.cache_clear()


@pytest.fixture
def engine_disk(path: Path, engine: str, faults: object) -> Iterator[Disk]:
    """On a plane with this engine."""
    disk = Disk(path, engine=engine)
    yield disk
    disk.close()
    assert not disk.gnttab.mapped


@pytest.fixture
def reference(path: Path) -> Iterator[Disk]:
    """On the plain-Python plane, where a test can step in between."""
    disk = Disk(path)
    yield disk
    disk.close()


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def slow(path: Path, tmp_path: Path, guest: Guest) -> Iterator[Callable[[bool], SlowDisk]]:
    with ExitStack() as stack:

        def make(native: bool) -> SlowDisk:
            copy = tmp_path / f"{len(list(tmp_path.iterdir()))}.img"
            copy.write_bytes(path.read_bytes())
            disk = SlowDisk(copy, guest, native)
            stack.callback(disk.close)
            disk.start()
            return disk

        yield make
    assert guest.grants.active == 0 and not guest.mapped
