"""A vCPU's time, as the host's scheduler tells it: it adds up and never goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenpvd.vmm.runstate import RunstateClock


class Vcpu:
    def __init__(self) -> None:
        self.ran = self.waited = 0

    def runtime(self) -> tuple[int, int]:
        return self.ran, self.waited


def test_running_and_waiting_and_the_rest() -> None:
    vcpu = Vcpu()
    clock = RunstateClock(vcpu)  # type: ignore[arg-type]
    vcpu.ran, vcpu.waited = 30, 20
    assert clock.read(100) == (0, 100, (30, 20, 50, 0))
    vcpu.ran = 130
    assert clock.read(200) == (0, 200, (130, 20, 50, 0))


@given(
    steps=st.lists(
        st.tuples(st.integers(-50, 100), st.integers(-50, 100), st.integers(-50, 100)), max_size=30
    )
)
def test_it_adds_up_whatever_the_hosts_clocks_say(steps: list[tuple[int, int, int]]) -> None:
    vcpu, now = Vcpu(), 1000
    clock = RunstateClock(vcpu)  # type: ignore[arg-type]
    last = clock.read(now)
    for more_ran, more_waited, passed in steps:
        vcpu.ran, vcpu.waited, now = vcpu.ran + more_ran, vcpu.waited + more_waited, now + passed
        state, since, times = clock.read(now)
        assert state == 0 and sum(times) == since >= last[1]
        assert all(new >= old for new, old in zip(times, last[2], strict=True))
        last = state, since, times
