"""Every test of an operation runs for a 64-bit and for a 32-bit caller."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import Bench


@pytest.fixture(params=[True, False], ids=["64", "32"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(longmode=request.param)
