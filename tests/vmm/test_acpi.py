"""The tables, read back as an operating system does: by pointer, signature, length and checksum."""

from __future__ import annotations

import struct

import pytest

from xenpvd.vmm import acpi, layout

GPA = 0xFC00_0000


def table(blob: bytes, gpa: int, expected: bytes) -> bytes:
    """The whole table; its checksum is right, and it lies clear of the next one."""
    at = gpa - GPA
    signature, length = struct.unpack_from("<4sI", blob, at)
    assert signature == expected and at + length <= len(blob) and at >= 36
    assert sum(blob[at : at + length]) & 0xFF == 0
    return blob[at : at + length]


@pytest.mark.parametrize("vcpus", [1, 2, 32])
def test_from_the_rsdp_to_the_lapics(vcpus: int) -> None:
    blob = acpi.tables(GPA, vcpus)
    assert len(blob) <= layout.ACPI_SIZE
    signature, _, oem, revision, _, length, xsdt, _ = struct.unpack_from("<8sB6sBIIQB", blob)
    assert (signature, oem, revision, length) == (b"RSD PTR ", b"xenpvd", 2, 36)
    assert sum(blob[:20]) & 0xFF == sum(blob[:36]) & 0xFF == 0
    assert blob[:36] == acpi.rsdp(GPA)
    fadt, madt = struct.unpack("<QQ", table(blob, xsdt, b"XSDT")[36:])
    body = table(blob, madt, b"APIC")[36:]
    assert struct.unpack_from("<II", body) == (0xFEE0_0000, 0)
    lapics = [struct.unpack_from("<BBBBI", body, at) for at in range(8, len(body), 8)]
    assert lapics == [(0, 8, n, n, 1) for n in range(vcpus)]
    assert fadt < madt


def test_the_fadt_says_that_there_is_no_hardware_but_a_way_to_switch_off() -> None:
    blob = acpi.tables(GPA, 1)
    (fadt_at,) = struct.unpack_from("<Q", table(blob, GPA + 64, b"XSDT"), 36)
    fadt = table(blob, fadt_at, b"FACP")
    assert (len(fadt), fadt[8], fadt[131]) == (268, 5, 1), "of ACPI 5.1"

    def number(at: int, size: int) -> int:
        return int.from_bytes(fadt[at : at + size], "little")

    boot_arch, flags = number(109, 2), number(112, 4)
    assert boot_arch == 1 << 2 | 1 << 5, "neither VGA nor a CMOS clock, and no other legacy device"
    assert flags >> 20 & 1, "HW_REDUCED_ACPI"
    assert flags >> 4 & 1 and flags >> 5 & 1, "neither button is fixed hardware"
    assert number(40, 4) == number(140, 8), "the DSDT, twice"
    assert number(36, 4) == number(132, 8) == 0, "no FACS"
    control, status = fadt[244:256], fadt[256:268]
    assert struct.unpack("<BBBBQ", control) == (1, 8, 0, 1, acpi.SLEEP_CONTROL)
    assert struct.unpack("<BBBBQ", status) == (1, 8, 0, 1, acpi.SLEEP_STATUS)
    zero = (*range(44, 109), 111, *range(116, 131), *range(148, 244))
    assert not any(fadt[at] for at in zero)
    aml = table(blob, number(140, 8), b"DSDT")[36:]
    # NameOp \_S5_ PackageOp, 7 bytes long, of 4: BytePrefix 5, Zero, Zero, Zero
    assert aml == b"\x08\\_S5_\x12\x07\x04\x0a\x05\0\0\0"
    assert len(aml) - aml.index(b"\x12") - 1 == 7


def test_the_rsdp_may_lie_anywhere() -> None:
    """It is found by its signature, and points to the tables where they are."""
    (xsdt,) = struct.unpack_from("<Q", acpi.rsdp(0x1234_0000), 24)
    assert xsdt == 0x1234_0000 + 64
