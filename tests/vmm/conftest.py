"""The kick's signal handler, which the daemon installs at its start."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from xenpvd.vmm.vcpu import KICK, install_kick_handler


@pytest.fixture(autouse=True)
def kick_handler() -> Iterator[None]:
    before = signal.getsignal(KICK)
    install_kick_handler()
    yield
    signal.signal(KICK, before)
