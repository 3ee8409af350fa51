"""One thread per vCPU: enter the guest, answer its exit, again.

What must be done on the vCPU's own thread (its ioctls) is handed over by :meth:`VcpuThread.submit`: a table,
the immediate_exit flag and a signal that interrupts KVM_RUN. The loop clears the flag *before* it looks at
the table, so a kick is never lost.
"""

from __future__ import annotations

import errno
import logging
import signal
import threading
from collections.abc import Callable
from typing import Protocol

from xenpvd.abi import linux_kvm as k
from xenpvd.errors import HostError, KvmError
from xenpvd.vmm.kvm import Vcpu

log = logging.getLogger(__name__)

KICK = signal.SIGUSR1
#: Xen's way to speak before it has found a Xen below it
DEBUG_PORT = 0xE9


class ExitHandler(Protocol):
    """Answers exits on the vCPU's thread."""

    def on_hypercall(
        self, vcpu: VcpuThread, longmode: int, cpl: int, number: int, args: tuple[int, ...]
    ) -> int:
        """The value for RAX, as a signed number."""

    def on_debug_port(self, data: bytes) -> None:
        """Bytes for I/O port 0xE9."""

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        """The vCPU cannot go on; it does not enter the guest again."""

    def on_fault(self, fault: BaseException) -> None:
        """We are wrong: an exception that nobody foresaw. The thread ends."""


def install_kick_handler() -> None:
    """Give KICK a handler that does nothing, so that it interrupts KVM_RUN and nothing else. Main thread."""
    signal.signal(KICK, lambda signum, frame: None)


class VcpuThread:
    def __init__(self, vcpu_id: int, vcpu: Vcpu, handler: ExitHandler) -> None:
        self.id = vcpu_id
        self.vcpu = vcpu
        self._handler = handler
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._stopping = False
        self._over = False
        self._thread = threading.Thread(target=self._run, name=f"vcpu{vcpu_id}", daemon=True)
        self.exits = 0

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

    def submit(self, key: int, act: Callable[[], None]) -> None:
        """Run ``act`` on this vCPU's thread, at once if that is the calling one, else before it enters the
        guest again. What still waits under the same ``key`` is dropped, so that a guest cannot pile it up.

        Raises what ``act`` raises if it is run at once; a :class:`KvmError` later on is only logged.
        """
        here = threading.current_thread() is self._thread
        with self._lock:
            self._waiting.pop(key, None)
            if not here and not self._over:
                self._waiting[key] = act
                self._kick()
        if here:
            act()

    def stop(self) -> None:
        """No instruction of the guest runs on this vCPU after it has left KVM_RUN. Does not wait."""
        with self._lock:
            self._stopping = True
            if not self._over:
                self._kick()

    def join(self) -> None:
        """Wait until the thread has ended; the vCPU may be closed then."""
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _kick(self) -> None:
        # under the lock, which the thread takes before it ends: an ended thread's id may not be used
        if self._thread.ident is not None:
            self.vcpu.request_exit(True)
            signal.pthread_kill(self._thread.ident, KICK)

    def _run(self) -> None:
        try:
            try:
                while self._prepare():
                    reason = self.vcpu.run()
                    if reason is not None:
                        self.exits += 1
                        self._answer(reason)
            except KvmError as fault:
                self._handler.on_crash(self, f"vCPU {self.id}: {fault}")
        except BaseException as fault:  # our own mistake ends the guest, never the daemon
            self._handler.on_fault(fault)
        finally:
            with self._lock:
                self._over = True
                self._waiting.clear()

    def _prepare(self) -> bool:
        """Do what was submitted; False if the guest must not be entered again."""
        self.vcpu.request_exit(False)
        with self._lock:
            acts, self._waiting = self._waiting, {}
        for act in acts.values():
            try:
                act()
            except KvmError as fault:
                log.warning("vCPU %d: %s", self.id, fault)
        return not self._stopping

    def _answer(self, reason: int) -> None:
        page = self.vcpu.run_page
        if reason == k.KVM_EXIT_XEN:
            _, longmode, cpl, number, _, *args = k.KVM_RUN_xen_hcall.unpack_from(page, k.KVM_RUN_union)
            result = self._handler.on_hypercall(self, longmode, cpl, number, tuple(args))
            answer = (result & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
            page[k.KVM_RUN_xen_result : k.KVM_RUN_xen_result + 8] = answer
        elif reason == k.KVM_EXIT_IO:
            direction, size, port, count, offset = k.KVM_RUN_io.unpack_from(page, k.KVM_RUN_union)
            if direction != k.KVM_EXIT_IO_OUT:
                page[offset : offset + size * count] = b"\xff" * (size * count)  # nothing lives there
            elif port == DEBUG_PORT:
                self._handler.on_debug_port(bytes(page[offset : offset + size * count]))
        elif reason == k.KVM_EXIT_MMIO:
            _, _, length, is_write = k.KVM_RUN_mmio.unpack_from(page, k.KVM_RUN_union)
            if not is_write:
                page[k.KVM_RUN_mmio_data : k.KVM_RUN_mmio_data + length] = b"\xff" * length
        elif reason != k.KVM_EXIT_INTR:
            name = k.KVM_EXIT_NAMES.get(reason, str(reason))
            if reason in (k.KVM_EXIT_INTERNAL_ERROR, k.KVM_EXIT_FAIL_ENTRY):
                name += f" {k.KVM_RUN_suberror.unpack_from(page, k.KVM_RUN_union)[0]:#x}"
            self._stopping = True
            self._handler.on_crash(self, f"vCPU {self.id}: KVM exit {name}")
