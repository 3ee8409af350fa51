"""The tables, read back as an operating system does: by pointer, signature, length and checksum."""

from __future__ import annotations

import struct

import pytest

from xenpvd.vmm.acpi import tables

GPA = 0xFC00_0000


@pytest.mark.parametrize("vcpus", [1, 2, 32])
def test_from_the_rsdp_to_the_lapics(vcpus: int) -> None:
    blob = tables(GPA, vcpus)
    signature, _, oem, revision, _, length, xsdt, _ = struct.unpack_from("<8sB6sBIIQB", blob)
    assert (signature, oem, revision, length) == (b"RSD PTR ", b"xenpvd", 2, 36)
    assert sum(blob[:20]) & 0xFF == sum(blob[:36]) & 0xFF == 0

    def table(gpa: int, expected: bytes) -> bytes:
        at = gpa - GPA
        signature, length = struct.unpack_from("<4sI", blob, at)
        assert signature == expected and at + length <= len(blob) and at >= 36
        assert sum(blob[at : at + length]) & 0xFF == 0
        return blob[at + 36 : at + length]

    pointers = table(xsdt, b"XSDT")
    (madt,) = struct.unpack("<Q", pointers)
    body = table(madt, b"APIC")
    assert struct.unpack_from("<II", body) == (0xFEE0_0000, 0)
    lapics = [struct.unpack_from("<BBBBI", body, at) for at in range(8, len(body), 8)]
    assert lapics == [(0, 8, n, n, 1) for n in range(vcpus)]
