"""console_io: the shim's log."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import Bench
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.vmm.xen.console_io import CONSOLE_WRITE_MAX

CONSOLE = x.HYPERVISOR_console_io


def test_what_is_written_is_logged(bench: Bench) -> None:
    bench.virtual.write(bench.last, b"(XEN) hello\n")
    assert bench.call(CONSOLE, x.CONSOLEIO_write, 12, bench.last) == 0
    assert bench.call(CONSOLE, x.CONSOLEIO_write, 0, bench.nowhere) == 0
    assert bench.platform.log == b"(XEN) hello\n"


@pytest.mark.parametrize("count", [CONSOLE_WRITE_MAX + 1, 2**31, 2**32 - 1, 2**64 - 1])
def test_an_absurd_length(bench: Bench, count: int) -> None:
    """E13."""
    assert bench.call(CONSOLE, x.CONSOLEIO_write, count, bench.arg) == -x.EINVAL
    assert bench.platform.log == b""


def test_a_text_that_runs_into_nowhere(bench: Bench) -> None:
    """E12: the last mapped page is read-only, which is enough to read it."""
    assert bench.call(CONSOLE, x.CONSOLEIO_write, PAGE_SIZE + 1, bench.read_only) == -x.EFAULT
    assert bench.platform.log == b""
    assert bench.call(CONSOLE, x.CONSOLEIO_write, PAGE_SIZE, bench.read_only) == 0


def test_there_is_nothing_to_read(bench: Bench) -> None:
    assert bench.call(CONSOLE, x.CONSOLEIO_read, 8, bench.arg) == -x.ENOSYS
