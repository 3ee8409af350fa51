"""What tests of the whole house share: a guest definition of tiny files, and machines without KVM."""

from __future__ import annotations

import gc
import signal
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd.config import GuestConfig


def tiny_shim() -> bytes:
    """The smallest file that boot.parse_shim takes: one PT_LOAD at 2 MiB, a PVH note, 16 bytes of code."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x200000)
    at = 52 + 2 * 32
    load = struct.pack("<8I", 1, at + len(note), 0x200000, 0x200000, 16, 4096, 7, 16)
    notes = struct.pack("<8I", 4, at, 0, 0, len(note), len(note), 4, 4)
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head = struct.pack("<16sHHIIIIIHHHHHH", ident, 2, 3, 1, 0x200000, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    return head + load + notes + note + bytes(16)


# how long anything takes is the machine's
settings.register_profile("xenpvd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xenpvd")


@pytest.fixture(scope="session", autouse=True)
def signals_count() -> None:
    """Though the tests are run by nohup or in a shell's background: children ignore what they inherit so."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """A test that measures does not measure the collector, which has all of the tests' objects to look at."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def definition(tmp_path: Path) -> GuestConfig:
    """A guest with one disk (xvda, 1 MiB); its files lie in ``tmp_path``."""
    (tmp_path / "shim").write_bytes(tiny_shim())
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "a.img").write_bytes(bytes(1 << 20))
    return GuestConfig.model_validate(
        {
            "name": "web1",
            "memory": 128,
            "kernel": str(tmp_path / "kernel"),
            "cmdline": "console=hvc0",
            "shim": {"path": str(tmp_path / "shim")},
            "disk": [{"vdev": "xvda", "target": str(tmp_path / "a.img")}],
        }
    )


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[FakeMachine]:
    """Every machine that a Domain makes is a FakeMachine, and is appended here."""
    made: list[FakeMachine] = []

    def make(*args: object) -> FakeMachine:
        made.append(FakeMachine(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("xenpvd.domain.Machine", make)
    return made


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    # closed before monkeypatch undoes anything: a restart that is pending shall not build a real machine
    house = House()
    yield house
    await house.guest.close()


@pytest.fixture
async def running(house: House, definition: GuestConfig, machines: list[FakeMachine]) -> House:
    """With one guest, on ``machines[0]``."""
    await house.guest.start(definition)
    return house
