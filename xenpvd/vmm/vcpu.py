"""One thread per vCPU: enter the guest, answer its exit, again.

What must be done on the vCPU's own thread (its ioctls) is handed over by :meth:`VcpuThread.submit`: a table,
the immediate_exit flag and a signal that interrupts KVM_RUN. The loop clears the flag *before* it looks at
the table, so a kick is never lost. A paused vCPU waits outside of KVM_RUN and still does what is submitted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Protocol

from xenpvd.abi import linux_kvm as k
from xenpvd.errors import HostError, KvmError, TimedOut
from xenpvd.vmm import acpi, registers
from xenpvd.vmm.kvm import Vcpu

log = logging.getLogger(__name__)

KICK = signal.SIGUSR1
#: Xen's way to speak before it has found a Xen below it
DEBUG_PORT = 0xE9
#: A timer that stands at 0: Linux (PVH) would read one of all ones 100,000 times before it gives up
PIT_COUNTERS = (0x40, 0x41, 0x42)
#: seconds that a vCPU may take to come out of the guest when it is asked for its registers
PATIENCE = 2.0


class ExitHandler(Protocol):
    """Answers exits on the vCPU's thread."""

    def on_hypercall(
        self, vcpu: VcpuThread, longmode: bool, cpl: int, number: int, args: tuple[int, ...]
    ) -> int:
        """The value for RAX, as a signed number."""

    def on_msr_write(self, vcpu: VcpuThread, index: int, value: int) -> bool:
        """False if the guest gets a #GP for it."""

    def on_debug_port(self, data: bytes) -> None:
        """Bytes for I/O port 0xE9."""

    def on_power_off(self) -> None:
        """The guest has switched itself off by ACPI."""

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        """The vCPU cannot go on; it does not enter the guest again."""

    def on_fault(self, fault: BaseException) -> None:
        """We are wrong: an exception that nobody foresaw. The thread ends."""


def install_kick_handler() -> None:
    """Give KICK a handler that does nothing, so that it interrupts KVM_RUN and nothing else. Main thread."""
    signal.signal(KICK, lambda signum, frame: None)


class VcpuThread:
    """``hypercall_port``: an I/O port whose writes are hypercalls, None if KVM knows them itself."""

    def __init__(
        self, vcpu_id: int, vcpu: Vcpu, handler: ExitHandler, hypercall_port: int | None = None
    ) -> None:
        self.id = vcpu_id
        self.vcpu = vcpu
        self._handler = handler
        self._hypercall_port = hypercall_port
        #: guards all below; nothing else is locked under it
        self._changed = threading.Condition(threading.Lock())
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._paused = False
        self._resting = False  # outside of KVM_RUN, and stays there until resumed
        self._stopping = False
        self._over = False
        self._busy_since: float | None = None  # by time.monotonic; None while in the guest, or at rest
        self._last: dict[str, int] | None = None
        self._thread = threading.Thread(target=self._run, name=f"vcpu{vcpu_id}", daemon=True)
        #: exits that came to Python, by kind. The keys stay, so another thread may look at it
        self.exits = dict.fromkeys(("hypercall", "io", "mmio", "msr", "kick", "other"), 0)

    @property
    def state(self) -> str:
        return "stopped" if self._over or self._stopping else "paused" if self._paused else "running"

    def runtime(self) -> tuple[int, int]:
        """(ns that the thread has run, ns that it waited for a CPU of the host); 0 where it is not known."""
        ident, native = self._thread.ident, self._thread.native_id
        if self._over or ident is None:
            return 0, 0
        ran = waited = 0
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ends just now; no CONFIG_SCHED_INFO
            ran = time.clock_gettime_ns(time.pthread_getcpuclockid(ident))
            waited = int(Path(f"/proc/self/task/{native}/schedstat").read_text().split()[1])
        return ran, waited

    @property
    def over(self) -> bool:
        """Its thread has ended."""
        return self._over

    def stuck(self, limit: float) -> str | None:
        """What keeps it out of the guest for more than ``limit`` seconds: work of ours that does not end.
        None while the guest runs, waits or is paused, whatever it does there itself."""
        since = self._busy_since
        busy = 0.0 if since is None else time.monotonic() - since
        return f"vCPU {self.id} has not come back to the guest for {busy:.0f} s" if busy > limit else None

    def runtime_elsewhere(self) -> tuple[int, int]:
        """The same, from another thread than its own: it cannot end meanwhile, and its id with it."""
        with self._changed:
            return self.runtime()

    def start(self) -> None:
        """Raises :class:`HostError` if the host gives no more threads."""
        try:
            self._thread.start()
        except RuntimeError as fault:
            raise HostError(
                f"cannot start vCPU {self.id}: {fault}. Raise the limit on tasks (TasksMax, ulimit -u).",
                errno.EAGAIN,
                self._thread.name,
            ) from None

    def submit(self, key: Hashable, act: Callable[[], None]) -> None:
        """Run ``act`` on this vCPU's thread, at once if that is the calling one, else before it enters the
        guest again. What still waits under the same ``key`` is dropped, so that a guest cannot pile it up.

        Raises what ``act`` raises if it is run at once; a :class:`KvmError` later on is only logged.
        """
        here = threading.current_thread() is self._thread
        with self._changed:
            self._waiting.pop(key, None)
            if not here and not self._over:
                self._waiting[key] = act
                self._kick()
        if here:
            act()

    def registers(self) -> dict[str, int] | None:
        """General and control registers, as of now; those of its end if it has ended, None if it has never
        run. Any thread but one that holds the machine's lock. Raises :class:`TimedOut`."""
        found: list[dict[str, int]] = []

        def act() -> None:
            regs = self.registers_here()
            with self._changed:
                found.append(regs)
                self._changed.notify_all()

        if self._thread.ident is None:
            return None
        self.submit(("registers", threading.get_ident()), act)
        with self._changed:
            if not self._changed.wait_for(lambda: found or self._over, PATIENCE):
                raise TimedOut(f"vCPU {self.id} does not answer. The host may be overloaded; try again.")
        return found[0] if found else self._last

    def pause(self) -> None:
        """No instruction of the guest runs after this and :meth:`rest`. Does not wait."""
        with self._changed:
            self._paused = True
            if not self._over:
                self._kick()

    def rest(self) -> None:
        """After :meth:`pause`: wait until the vCPU is out of the guest. Not from a vCPU's thread."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._resting or self._over or not self._paused or self._thread.ident is None
            )

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def stop(self) -> None:
        """No instruction of the guest runs on this vCPU after it has left KVM_RUN. Does not wait."""
        with self._changed:
            self._stopping = True
            if not self._over:
                self._kick()

    def join(self) -> None:
        """Wait until the thread has ended; the vCPU may be closed then."""
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _kick(self) -> None:
        # under the lock, which the thread takes before it ends: an ended thread's id may not be used
        self._changed.notify_all()
        if self._thread.ident is not None:
            self.vcpu.request_exit(True)
            signal.pthread_kill(self._thread.ident, KICK)

    def _run(self) -> None:
        try:
            try:
                while self._prepare():
                    self._busy_since = None
                    reason = self.vcpu.run()
                    self._busy_since = time.monotonic()
                    if reason is None:
                        self.exits["kick"] += 1
                    else:
                        self._answer(reason)
            except KvmError as fault:
                self._handler.on_crash(self, f"vCPU {self.id}: {fault}")
        except BaseException as fault:  # our own mistake ends the guest, never the daemon
            self._handler.on_fault(fault)
        finally:
            with self._changed:
                with contextlib.suppress(KvmError):
                    self._last = self.registers_here()
                self._over = True
                self._busy_since = None
                self._waiting.clear()
                self._changed.notify_all()

    def _prepare(self) -> bool:
        """Do what was submitted, and rest while paused; False if the guest must not be entered again."""
        while True:
            self.vcpu.request_exit(False)
            with self._changed:
                acts, self._waiting = self._waiting, {}
                if not acts:
                    if self._stopping or not self._paused:
                        self._resting = False
                        return not self._stopping
                    self._resting = True
                    self._busy_since = None
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._waiting or self._stopping or not self._paused)
                    self._busy_since = time.monotonic()
            for act in acts.values():
                try:
                    act()
                except KvmError as fault:
                    log.warning("vCPU %d: %s", self.id, fault)

    def registers_here(self) -> dict[str, int]:
        """On the vCPU's own thread. Raises :class:`KvmError`."""
        return registers.named(self.vcpu.get_regs(), self.vcpu.get_sregs())

    def _answer(self, reason: int) -> None:
        page = self.vcpu.run_page
        if reason == k.KVM_EXIT_XEN:
            self.exits["hypercall"] += 1
            _, longmode, cpl, number, _, *args = k.KVM_RUN_xen_hcall.unpack_from(page, k.KVM_RUN_union)
            result = self._handler.on_hypercall(self, bool(longmode), cpl, number, tuple(args))
            answer = (result & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
            page[k.KVM_RUN_xen_result : k.KVM_RUN_xen_result + 8] = answer
        elif reason == k.KVM_EXIT_IO:
            direction, size, port, count, offset = k.KVM_RUN_io.unpack_from(page, k.KVM_RUN_union)
            if port == self._hypercall_port and direction == k.KVM_EXIT_IO_OUT and size == count == 1:
                self.exits["hypercall"] += 1
                registers.set_rax(page, self._handler.on_hypercall(self, *registers.hypercall(page)))
                return
            self.exits["io"] += 1
            end = offset + size * count
            if direction != k.KVM_EXIT_IO_OUT:  # nothing lives anywhere
                page[offset:end] = (b"\0" if port in PIT_COUNTERS else b"\xff") * (end - offset)
            elif port == DEBUG_PORT:
                self._handler.on_debug_port(bytes(page[offset:end]))
            elif port == acpi.SLEEP_CONTROL and page[offset] & acpi.SLP_EN:
                self._handler.on_power_off()
        elif reason == k.KVM_EXIT_MMIO:
            self.exits["mmio"] += 1
            _, _, length, is_write = k.KVM_RUN_mmio.unpack_from(page, k.KVM_RUN_union)
            if not is_write:
                page[k.KVM_RUN_mmio_data : k.KVM_RUN_mmio_data + length] = b"\xff" * length
        elif reason in (k.KVM_EXIT_X86_RDMSR, k.KVM_EXIT_X86_WRMSR):
            self.exits["msr"] += 1
            _, _, index, value = k.KVM_RUN_msr.unpack_from(page, k.KVM_RUN_union)
            write = reason == k.KVM_EXIT_X86_WRMSR
            page[k.KVM_RUN_msr_error] = not (write and self._handler.on_msr_write(self, index, value))
        else:
            self.exits["other"] += 1
            if reason != k.KVM_EXIT_INTR:
                self._crash(reason)

    def _crash(self, reason: int) -> None:
        name = k.KVM_EXIT_NAMES.get(reason, str(reason))
        if reason in (k.KVM_EXIT_INTERNAL_ERROR, k.KVM_EXIT_FAIL_ENTRY):
            name += f" {k.KVM_RUN_suberror.unpack_from(self.vcpu.run_page, k.KVM_RUN_union)[0]:#x}"
        with self._changed:
            self._stopping = True
        self._handler.on_crash(self, f"vCPU {self.id}: KVM exit {name}")
