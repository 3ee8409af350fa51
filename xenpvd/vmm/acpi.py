"""The ACPI tables the shim reads: RSDP → XSDT → MADT with one LAPIC per vCPU.

No IOAPIC is listed on purpose: Xen would then look for a ticking PIT. ACPI specification 6.5, 5.2.5-5.2.12.
"""

from __future__ import annotations

from struct import Struct, pack

_HEADER = Struct("<4sIBB6s8sI4sI")  # signature length revision checksum oem_id table_id oem_rev creator rev
_LOCAL_APIC = Struct("<BBBBI")  # type 0, length 8, uid, apic_id, flags
LAPIC_ADDRESS = 0xFEE0_0000
_OEM = b"xenpvd"


def _checksummed(table: bytes, at: int, length: int | None = None) -> bytes:
    total = -sum(table[:length]) & 0xFF
    return table[:at] + bytes([total]) + table[at + 1 :]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = _HEADER.pack(signature, _HEADER.size + len(body), revision, 0, _OEM, b"xenpvd  ", 1, b"xnpv", 1)
    return _checksummed(header + body, 9)


def tables(gpa: int, vcpus: int) -> bytes:
    """RSDP, XSDT and MADT to be placed at guest address ``gpa``; the RSDP comes first."""
    lapics = b"".join(_LOCAL_APIC.pack(0, 8, n, n, 1) for n in range(vcpus))
    madt = _table(b"APIC", 3, pack("<II", LAPIC_ADDRESS, 0) + lapics)
    xsdt_at = gpa + 64
    madt_at = xsdt_at + 64
    xsdt = _table(b"XSDT", 1, pack("<Q", madt_at))
    rsdp = pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, 36, xsdt_at, 0)
    rsdp = _checksummed(_checksummed(rsdp, 8, 20), 32)
    return rsdp.ljust(64, b"\0") + xsdt.ljust(64, b"\0") + madt
