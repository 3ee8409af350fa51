"""The kick's signal handler, which the daemon installs at its start; and threads that take turns often."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

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
