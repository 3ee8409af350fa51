"""A device on the real store, and nothing left of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.device import DeviceRig
from xenpvd.backends import device


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeviceRig]:
    monkeypatch.setattr(device, "BURST", 10_000)
    rig = DeviceRig()
    rig.start()
    await rig.settle()
    yield rig
    await rig.device.close()
    assert rig.faults == []
