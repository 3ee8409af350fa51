"""hvm_start_info, read back by its pointers."""

from __future__ import annotations

import struct

import pytest

from xenpvd.errors import BadConfig
from xenpvd.vmm.start_info import build

AT = 0x20000
E820 = [(0, 1 << 25, 1), (0xFC00_0000, 0x10000, 3), (1 << 32, 1 << 40, 1)]


def blob(*modules: tuple[int, int, str], cmdline: str = "console=xen", room: int = 4096) -> bytes:
    return build(AT, room, cmdline=cmdline, modules=modules, rsdp=0xFC00_0000, e820=E820)


def line(data: bytes, address: int) -> str:
    text = data[address - AT :]
    return text[: text.index(b"\0")].decode()


@pytest.mark.parametrize(
    "modules",
    [
        (),
        ((0x100_0000, 5000, ""),),
        ((0x100_0000, 5000, "root=/dev/xvda quiet=ä"), (0x100_2000, 1, "")),
    ],
)
def test_all_that_it_points_to(modules: tuple[tuple[int, int, str], ...]) -> None:
    data = blob(*modules)
    magic, version, flags, count, modlist, cmdline, rsdp, memmap, entries, reserved = struct.unpack_from(
        "<IIIIQQQQII", data
    )
    assert (magic, version, flags, rsdp, reserved) == (0x336E_C578, 1, 0, 0xFC00_0000, 0)
    assert line(data, cmdline) == "console=xen"
    found = []
    for n in range(count):
        paddr, size, text, reserved = struct.unpack_from("<4Q", data, modlist - AT + 32 * n)
        found.append((paddr, size, line(data, text) if text else ""))
        assert reserved == 0
    assert tuple(found) == modules
    read = [struct.unpack_from("<QQII", data, memmap - AT + 24 * n) for n in range(entries)]
    assert read == [(*entry, 0) for entry in E820]


def test_an_empty_command_line_is_one() -> None:
    data = blob(cmdline="")
    (cmdline,) = struct.unpack_from("<Q", data, 24)
    assert cmdline and line(data, cmdline) == ""


def test_what_does_not_fit() -> None:
    size = len(blob(cmdline="x" * 100))
    assert len(blob(cmdline="x" * 100, room=size)) == size
    with pytest.raises(BadConfig, match=r"101 bytes of command lines.*Shorten cmdline"):
        blob(cmdline="x" * 100, room=size - 1)
