"""A backend's end of a channel: who is told, and what is closed."""

from __future__ import annotations

import os
import threading

import pytest

from tests.fakes.fds import open_fds
from xenpvd.errors import HostError
from xenpvd.vmm.port import BackendPort, eventfd, signal


def port(irq: bool = True) -> tuple[BackendPort, list[str]]:
    told: list[str] = []
    irq_fd = eventfd() if irq else None
    return (
        BackendPort(5, eventfd(), irq_fd, lambda: told.append("raise"), lambda: told.append("close")),
        told,
    )


@pytest.mark.parametrize("irq", [True, False])
def test_a_port_is_raised_until_it_is_closed(irq: bool) -> None:
    before = open_fds()
    one, told = port(irq)
    one.notify()
    one.notify()
    one.close()
    one.close()
    one.notify()
    assert told == ["raise", "raise", "close"] and open_fds() == before


def test_a_signal_does_not_block_when_nobody_reads() -> None:
    fd = eventfd()
    os.eventfd_write(fd, 2**64 - 2)
    signal(fd)
    assert os.eventfd_read(fd) == 2**64 - 2
    os.close(fd)


def test_a_host_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse)
    with pytest.raises(HostError, match=r"Too many open files\. Raise the limit"):
        eventfd()


def test_a_port_is_not_closed_while_it_is_notified() -> None:
    """A disk's thread notifies while the loop closes the port: the write must not meet a number that has
    been given to another file since."""
    met: list[bool] = []

    def slow() -> None:
        closer.start()
        closer.join(0.05)
        met.append(closer.is_alive())

    one = BackendPort(5, eventfd(), eventfd(), slow, lambda: None)
    closer = threading.Thread(target=one.close)
    one.notify()
    closer.join()
    one.notify()
    assert met == [True]
