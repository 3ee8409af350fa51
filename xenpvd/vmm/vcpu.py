"""One thread per vCPU: enter the guest, answer its exit, again.

What must be done on the vCPU's own thread (its ioctls) is handed over by :meth:`VcpuThread.submit`: a queue,
the immediate_exit flag and a signal that interrupts KVM_RUN. The loop clears the flag *before* it looks at
the queue, so a kick is never lost.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from xenpvd.abi import linux_kvm as k
from xenpvd.vmm.kvm import Vcpu

log = logging.getLogger(__name__)

KICK = signal.SIGUSR1


class ExitHandler(Protocol):
    """Answers exits on the vCPU's thread."""

    def on_hypercall(
        self, vcpu: VcpuThread, longmode: int, cpl: int, number: int, args: tuple[int, ...]
    ) -> int:
        """The value for RAX, as a signed number."""

    def on_debug_port(self, data: bytes) -> None:
        """Bytes for I/O port 0xE9, Xen's way to speak before it has found a Xen below it."""

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        """The vCPU cannot go on."""

    def on_fault(self, fault: BaseException) -> None:
        """We are wrong: an exception that nobody foresaw."""


def install_kick_handler() -> None:
    """Give KICK a handler that does nothing, so that it interrupts KVM_RUN and nothing else. Main thread."""
    signal.signal(KICK, lambda signum, frame: None)


class VcpuThread:
    def __init__(self, vcpu_id: int, vcpu: Vcpu, handler: ExitHandler) -> None:
        self.id = vcpu_id
        self.vcpu = vcpu
        self._handler = handler
        self._queue: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"vcpu{vcpu_id}", daemon=True)
        self.exits = 0

    def start(self) -> None:
        self._thread.start()

    def submit(self, act: Callable[[], None]) -> None:
        """Run ``act`` on this vCPU's thread, at once if that is the calling one, else before it enters the
        guest again."""
        if threading.current_thread() is self._thread:
            act()
            return
        self._queue.append(act)
        self._kick()

    def stop(self) -> None:
        """No instruction of the guest runs on this vCPU after it has left KVM_RUN. Does not wait."""
        self._stopping = True
        self._kick()

    def join(self) -> None:
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _kick(self) -> None:
        self.vcpu.request_exit(True)
        ident = self._thread.ident
        if ident is not None and self._thread.is_alive():
            signal.pthread_kill(ident, KICK)

    def _run(self) -> None:
        try:
            while True:
                self.vcpu.request_exit(False)
                while self._queue:
                    self._queue.popleft()()
                if self._stopping:
                    return
                reason = self.vcpu.run()
                if reason is not None:
                    self.exits += 1
                    self._answer(reason)
        except BaseException as fault:  # our own mistake ends the guest, never the daemon
            self._handler.on_fault(fault)

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
            elif port == 0xE9:
                self._handler.on_debug_port(bytes(page[offset : offset + size * count]))
        elif reason == k.KVM_EXIT_MMIO:
            _, _, length, is_write = k.KVM_RUN_mmio.unpack_from(page, k.KVM_RUN_union)
            if not is_write:
                page[k.KVM_RUN_mmio_data : k.KVM_RUN_mmio_data + length] = b"\xff" * length
        elif reason != k.KVM_EXIT_INTR:
            name = k.KVM_EXIT_NAMES.get(reason, str(reason))
            self._stopping = True
            self._handler.on_crash(self, f"vCPU {self.id}: KVM exit {name}")
