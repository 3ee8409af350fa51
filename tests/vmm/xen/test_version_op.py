"""xen_version: every operation, and no byte in an answer that is not of it (E18)."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import Bench
from xenpvd.abi import version as v
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.vmm.xen.version_op import OPERATIONS

VERSION = x.HYPERVISOR_xen_version
STALE = b"\xaa" * 2048

#: (operation, length of the answer, what it begins with)
TEXTS = [
    (v.XENVER_extraversion, 16, b".0-xenpvd\0"),
    (v.XENVER_compile_info, 144, b"Python\0"),
    (v.XENVER_capabilities, 1024, b"xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 \0"),
    (v.XENVER_changeset, 64, b"unavailable\0"),
    (v.XENVER_guest_handle, 16, b"\0"),
    (v.XENVER_commandline, 1024, b"\0"),
]


@pytest.mark.parametrize("op, length, start", TEXTS)
def test_texts(bench: Bench, op: int, length: int, start: bytes) -> None:
    bench.virtual.write(bench.arg, STALE)
    assert bench.call(VERSION, op, bench.arg) == 0
    answer = bench.virtual.read(bench.arg, len(STALE))
    assert answer.startswith(start)
    assert answer[length:] == STALE[length:], "no longer than its struct"
    assert 0xAA not in answer[:length], "filled to the end"


def test_compile_info_has_four_fields(bench: Bench) -> None:
    assert bench.call(VERSION, v.XENVER_compile_info, bench.arg) == 0
    fields = [
        bytes(field).rstrip(b"\0") for field in v.xen_compile_info.unpack(bench.virtual.read(bench.arg, 144))
    ]
    assert fields == [b"Python", b"xenpvd", b"", b""]


def test_numbers(bench: Bench) -> None:
    assert bench.call(VERSION, v.XENVER_version, bench.nowhere) == 4 << 16 | 17
    assert bench.call(VERSION, v.XENVER_pagesize, 0) == PAGE_SIZE
    assert bench.call(VERSION, v.XENVER_pagesize, bench.arg) == -x.EINVAL
    assert bench.call(VERSION, v.XENVER_build_id, bench.arg) == -x.ENODATA
    assert bench.call(VERSION, 11, bench.arg) == -x.ENOSYS


def test_platform_parameters_are_as_long_as_an_address(bench: Bench) -> None:
    bench.virtual.write(bench.arg, STALE)
    assert bench.call(VERSION, v.XENVER_platform_parameters, bench.arg) == 0
    size = bench.caller.ulong
    expected = 0xFFFF_8000_0000_0000 if bench.caller.longmode else 0xF580_0000
    answer = expected.to_bytes(size, "little") + b"\xaa" * 8
    assert bench.virtual.read(bench.arg, size + 8) == answer


def test_features(bench: Bench) -> None:
    """As Xen's for a PVH guest: hvm_pirqs (10) is not among them."""
    asked = bench.ask(VERSION, v.XENVER_get_features, v.xen_feature_info, 0, 2**32 - 1)
    assert asked == (0, 0, sum(1 << bit for bit in (0, 2, 8, 9, 13, 16)))
    for submap in (1, 2**32 - 1):
        asked = bench.ask(VERSION, v.XENVER_get_features, v.xen_feature_info, submap, 7)
        assert asked == (-x.EINVAL, submap, 7)


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_an_answer_into_nowhere(bench: Bench, op: int) -> None:
    """E12: and none that ends there is begun."""
    results = {v.XENVER_version: 4 << 16 | 17, v.XENVER_pagesize: -x.EINVAL, v.XENVER_build_id: -x.ENODATA}
    for at in (bench.nowhere, bench.read_only, bench.read_only - 2):
        before = bytes(bench.memory.bytes)
        assert bench.call(VERSION, op, at) == results.get(op, -x.EFAULT)
        assert bench.memory.bytes == before
