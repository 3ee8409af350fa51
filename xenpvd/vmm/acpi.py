"""The ACPI tables of a machine without devices: RSDP → XSDT → FADT (→ DSDT), MADT with one LAPIC per vCPU.

No IOAPIC is listed on purpose: Xen would then look for a ticking PIT. The FADT says that there is no ACPI
hardware but one register, to which a guest writes to switch itself off: a PVH guest has no other way, as
Linux makes no hypercall for it. It also says that there is neither VGA nor a clock chip, by which a Linux
that was started by GRUB knows that it is a PVH guest. ACPI specification 6.5, 4.8.3.7, 5.2.5-5.2.12, 7.4.2.
"""

from __future__ import annotations

from struct import Struct, pack

_HEADER = Struct("<4sIBB6s8sI4sI")  # signature length revision checksum oem_id table_id oem_rev creator rev
_LOCAL_APIC = Struct("<BBBBI")  # type 0, length 8, uid, apic_id, flags
_GAS = Struct("<BBBBQ")  # space (1: I/O ports), bits, bit offset, access size (1: a byte), address
#: after the header: dsdt, iapc_boot_arch, flags, minor version, x_dsdt, sleep control and status; 0 else
_FADT = Struct("<4xI65xHxI15xB8xQ96x12s12s")
LAPIC_ADDRESS = 0xFEE0_0000

#: I/O ports, a byte each. A write to the first with SLP_EN set ends the guest
SLEEP_CONTROL = 0x600
SLEEP_STATUS = 0x601
SLP_EN = 1 << 5
_SLP_TYP_S5 = 5

_NO_VGA, _NO_CMOS_RTC = 1 << 2, 1 << 5
_WBINVD, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _NO_RTC_WAKE, _HW_REDUCED = (
    1 << 0,
    1 << 4,
    1 << 5,
    1 << 6,
    1 << 20,
)
#: AML: Name (\_S5, Package (4) {5, 0, 0, 0})
_S5 = bytes((0x08, 0x5C, *b"_S5_", 0x12, 7, 4, 0x0A, _SLP_TYP_S5, 0x00, 0x00, 0x00))
_OEM = b"xenpvd"
#: where the tables begin, from the RSDP on
_XSDT, _FADT_AT, _DSDT, _MADT = 64, 128, 448, 512


def _checksummed(table: bytes, at: int, length: int | None = None) -> bytes:
    total = -sum(table[:length]) & 0xFF
    return table[:at] + bytes([total]) + table[at + 1 :]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = _HEADER.pack(signature, _HEADER.size + len(body), revision, 0, _OEM, b"xenpvd  ", 1, b"xnpv", 1)
    return _checksummed(header + body, 9)


def rsdp(gpa: int) -> bytes:
    """The root pointer to the tables at ``gpa``; it may lie anywhere."""
    pointer = pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, 36, gpa + _XSDT, 0)
    return _checksummed(_checksummed(pointer, 8, 20), 32)


def tables(gpa: int, vcpus: int) -> bytes:
    """All tables, to be placed at guest address ``gpa``; the RSDP comes first."""
    fadt = _FADT.pack(
        gpa + _DSDT,
        _NO_VGA | _NO_CMOS_RTC,
        _WBINVD | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _NO_RTC_WAKE | _HW_REDUCED,
        1,
        gpa + _DSDT,
        *(_GAS.pack(1, 8, 0, 1, port) for port in (SLEEP_CONTROL, SLEEP_STATUS)),
    )
    lapics = b"".join(_LOCAL_APIC.pack(0, 8, n, n, 1) for n in range(vcpus))
    blob = b""
    for at, table in (
        (0, rsdp(gpa)),
        (_XSDT, _table(b"XSDT", 1, pack("<QQ", gpa + _FADT_AT, gpa + _MADT))),
        (_FADT_AT, _table(b"FACP", 5, fadt)),
        (_DSDT, _table(b"DSDT", 2, _S5)),
        (_MADT, _table(b"APIC", 3, pack("<II", LAPIC_ADDRESS, 0) + lapics)),
    ):
        blob = blob.ljust(at, b"\0") + table
    return blob
