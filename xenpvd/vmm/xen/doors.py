"""What the outer Xen needs done outside of its tables. Everything is called with the machine's lock held and
waits for no other thread of ours, but :meth:`Platform.let_others`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol


class Platform(Protocol):
    """The machine. A vCPU's own attributes are set on its thread."""

    def latch_long_mode(self, longmode: bool) -> None:
        """The layout of shared_info follows who sets HVM_PARAM_CALLBACK_IRQ."""

    def set_shared_info(self, gfn: int) -> None: ...

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None: ...

    def set_time_info(self, vcpu: int, gpa: int | None) -> None:
        """A second copy of the vCPU's clock. Raises ``XenError`` ENOSYS if it cannot be had."""

    def set_runstate_area(self, vcpu: int, gpa: int | None) -> None:
        """Keep the vCPU's runstate there. Raises ``XenError`` ENOSYS if it cannot be had."""

    def runstate(self, vcpu: int) -> tuple[int, int, tuple[int, int, int, int]]:
        """(state, since, time spent in each of the four), nanoseconds."""

    def set_upcall_vector(self, vcpu: int, vector: int) -> None: ...

    def set_callback_vector(self, vector: int) -> None:
        """The vector of upcalls on every vCPU that has none of its own; 0: none."""

    def claim(self, gfn: int) -> None:
        """The guest has memory there from now on. Raises ``XenError``: EINVAL where none can be, ENOMEM."""

    def is_backed(self, gfn: int) -> bool:
        """Whether the guest has memory there: RAM, or a page that it has claimed."""

    def is_ram(self, gfn: int) -> bool: ...

    def ballooned(self) -> int:
        """Pages of RAM given back and not taken again."""

    def discard(self, gfn: int) -> None:
        """Give the page's memory back to the host."""

    def populate(self, gfn: int) -> None:
        """The guest takes the page again."""

    def system_time(self) -> int:
        """Xen's system time: nanoseconds since the machine's start, as the guest's clock has it."""

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """Raise the vCPU's VIRQ_TIMER at ``deadline`` (system time), at once if that is over; None: never."""

    def arm(self, key: Hashable, deadline: int, act: Callable[[], None]) -> None:
        """Call ``act`` once at ``deadline`` (system time), instead of what ``key`` had armed before."""

    def disarm(self, key: Hashable) -> None:
        """Nothing if nothing is armed."""

    def let_others(self) -> None:
        """Let the machine's lock go for those who wait for it, in a hypercall of many parts. No other
        hypercall is answered meanwhile, but timers act, and backends come and go."""

    def console_write(self, data: bytes) -> None:
        """The shim's own log."""

    def shutdown(self, reason: int) -> None:
        """No vCPU runs another instruction after this."""


class GrantFrames(Protocol):
    """The guest's grant table, as far as hypercalls go."""

    @property
    def nr_frames(self) -> int: ...

    def frames(self) -> list[int]:
        """Where each frame lies; INVALID_GFN where none does."""

    def set_frame(self, idx: int, gfn: int) -> None:
        """Frame ``idx`` now lies at ``gfn``. Raises ``XenError``."""

    def claim(self, gref: int, *, readonly: bool, domid: int) -> int:
        """The frame that is granted to ``domid``. Raises ``GrantError``."""

    def release(self, gref: int, *, readonly: bool) -> None: ...
