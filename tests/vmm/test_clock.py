from __future__ import annotations

import time

import pytest

from tests.fakes.kvm import FakeVm
from xenpvd.vmm.clock import Clock

SECOND = 10**9
EPOCH = 1_700_000_000 * SECOND


@pytest.mark.parametrize("start", [0, 1, SECOND // 2, 123_456_789, SECOND - 1])
@pytest.mark.parametrize("later", [0, 1, 499_999_999, SECOND - 1, 7 * SECOND + 300_000_000])
def test_a_shim_that_drops_fractions_is_right_to_half_a_second(
    monkeypatch: pytest.MonkeyPatch, start: int, later: int
) -> None:
    vm = FakeVm()
    monkeypatch.setattr(time, "time_ns", lambda: EPOCH + start)
    clock = Clock(vm, whole_seconds=True)  # type: ignore[arg-type]
    vm.now, vm.realtime = vm.now + later, EPOCH + start + later
    told = clock.epoch()
    assert told % SECOND == 0
    by_the_shim = told // SECOND + clock.now() // SECOND
    assert abs(by_the_shim * SECOND - vm.realtime) <= SECOND // 2


def test_other_guests_are_told_to_the_nanosecond() -> None:
    vm = FakeVm()
    clock = Clock(vm, whole_seconds=False)  # type: ignore[arg-type]
    vm.now, vm.realtime = 5_000_000_007, EPOCH + 42
    assert clock.epoch() + clock.now() == EPOCH + 42


def test_a_kernel_that_does_not_say_when(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = FakeVm()
    vm.now, vm.realtime = 3, None
    monkeypatch.setattr(time, "time_ns", lambda: EPOCH)
    assert Clock(vm, whole_seconds=False).epoch() == EPOCH - 3  # type: ignore[arg-type]
