"""shared_info and vcpu_info byte by byte, in both layouts (offsets: include/public/xen.h)."""

from __future__ import annotations

import struct

import pytest

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import XenError
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.shared_info import SharedInfo

SHARED = 20
AT = SHARED * PAGE_SIZE


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory()
    memory.add("ram", 0, MIB, ram=True)
    return memory


@pytest.fixture(params=[True, False], ids=["64", "32"])
def info(memory: GuestMemory, request: pytest.FixtureRequest) -> SharedInfo:
    info = SharedInfo(memory, 2)
    info.longmode = request.param
    info.place(SHARED)
    return info


def test_before_there_is_a_page_nothing_is_pending(memory: GuestMemory) -> None:
    info = SharedInfo(memory, 2)
    assert not info.placed and not info.pending(1) and not info.masked(1) and not info.upcall_pending(0)
    info.clear_pending(1)
    info.unmask(1)
    info.write_wallclock(10**18)
    assert not info.select(0, 1)
    with pytest.raises(XenError):
        info.place(MIB // PAGE_SIZE)
    assert not info.placed


@pytest.mark.parametrize("port", [1, 31, 32, 63, 64, 1023])
def test_bits(info: SharedInfo, memory: GuestMemory, port: int) -> None:
    mask = 0xA00 if info.longmode else 0x880
    assert info.place(SHARED) == ([(0, AT), (1, AT + 64)], set())
    assert not info.set_pending(port) and info.set_pending(port) and info.pending(port)
    assert memory.read(AT + 0x800 + port // 8, 1) == bytes([1 << port % 8])
    memory.write(AT + mask, b"\xff" * 128)
    assert info.masked(port)
    info.unmask(port)
    assert not info.masked(port) and info.masked(port - 1) and info.masked(port ^ 2)
    info.clear_pending(port)
    assert not info.pending(port)
    info.check(port)


def test_the_last_port(info: SharedInfo) -> None:
    last = 4095 if info.longmode else 1023
    info.check(last)
    for port in (0, last + 1):
        with pytest.raises(XenError):
            info.check(port)


@pytest.mark.parametrize("port", [1, 40, 1023])
def test_an_upcall_names_the_word(info: SharedInfo, memory: GuestMemory, port: int) -> None:
    memory.write(AT + 64, b"\0\xaa")
    assert info.select(1, port) and info.upcall_pending(1) and not info.upcall_pending(0)
    if info.longmode:
        expected = struct.pack("<BB6xQ", 1, 0xAA, 1 << port // 64)
    else:
        expected = struct.pack("<BB2xI8x", 1, 0xAA, 1 << port // 32)
    assert memory.read(AT + 64, 16) == expected
    assert memory.read(AT, 64) == bytes(64)


def test_a_vcpus_own_info_takes_over_what_waits_and_stays(info: SharedInfo, memory: GuestMemory) -> None:
    assert not info.place_vcpu_info(0, 0x3000)
    info.select(1, 1000)
    assert info.place_vcpu_info(1, 0x3040) and info.upcall_pending(1)
    assert memory.read(0x3040, 16) == memory.read(AT + 64, 16)
    assert info.place(SHARED + 1) == ([], set())
    info.select(1, 1)
    assert memory.read(0x3040, 16) != memory.read(AT + 64, 16)


def test_a_moved_page_is_a_copy_and_who_else_writes_may_refuse(info: SharedInfo, memory: GuestMemory) -> None:
    info.set_pending(5)

    def refuse() -> None:
        raise XenError(22)

    with pytest.raises(XenError):
        info.place(SHARED + 1, refuse)
    info.set_pending(6)
    assert memory.read(AT + 0x800, 1) == b"\x60", "it has not moved"

    def late() -> None:
        memory.write(AT + 0x800, b"\x62")

    moved, ports = info.place(SHARED + 1, late)
    assert ports == {1} and [vcpu for vcpu, _ in moved] == [0, 1]
    assert memory.read(AT + PAGE_SIZE + 0x800, 1) == b"\x60"


def test_only_32_vcpus_have_a_place_in_the_page(memory: GuestMemory) -> None:
    info = SharedInfo(memory, 34)
    assert [vcpu for vcpu, _ in info.place(SHARED)[0]] == list(range(32))
    assert not info.select(33, 1)
    assert not info.place_vcpu_info(33, 0x3000) and info.select(33, 1)


def test_wallclock(info: SharedInfo, memory: GuestMemory) -> None:
    info.write_wallclock((5 << 32) * 10**9 + 7 * 10**9 + 42)
    at, high = (0xC00, 0xC0C) if info.longmode else (0x900, 0x924)
    assert struct.unpack("<III", memory.read(AT + at, 12)) == (2, 7, 42)
    assert memory.read(AT + high, 4) == b"\5\0\0\0"
    info.write_wallclock(10**9)
    assert struct.unpack("<III", memory.read(AT + at, 12)) == (4, 1, 0)
