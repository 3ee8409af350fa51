"""The kick's signal handler, which the daemon installs at its start; threads that take turns often; a
machine on a KVM that a test drives."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.kvm import FakeSystem
from tests.vmm.bench import Bench
from xenpvd.vmm.vcpu import KICK, install_kick_handler


@pytest.fixture(autouse=True)
def kick_handler() -> Iterator[None]:
    before = signal.getsignal(KICK)
    install_kick_handler()
    yield
    signal.signal(KICK, before)


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem()
    monkeypatch.setattr("xenpvd.vmm.build.System", lambda: system)
    return system


@pytest.fixture(params=["kvm-xen", "kvm"])
async def either(system: FakeSystem, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.machine.stop()
    bench.machine.close()


@pytest.fixture
async def bench(system: FakeSystem) -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.machine.stop()
    bench.machine.close()
