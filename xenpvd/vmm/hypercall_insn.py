"""A hypercall without VMCALL: KVM answers that itself if it does not play Xen, so the guest is made to do an
OUT to a port of ours, which comes here with all registers. Same length, nothing clobbered.

Shims of today have VMMCALL (AMD) and VMCALL (Intel) side by side in their code; older shims and some kernels
take a page of stubs from us instead.
"""

from __future__ import annotations

import re
from struct import pack

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import Unsupported

XEN_ELFNOTE_HYPERCALL_PAGE = 2
XEN_ELFNOTE_GUEST_OS = 6
#: a port without a device on any PC
PORT = 0xE4
_OUT = bytes([0xE6, PORT])  # out %al, $PORT
_NOP = b"\x90"
_EITHER = re.compile(rb"\x0f\x01([\xd9\xc1])")
_AMD, _INTEL = b"\xd9", b"\xc1"
#: Bytes between the two instructions of a pair; early_hypercall() has a RET between them
_PAIR_MAX = 4
#: Bytes that the table of alternatives may take
_TABLE_MAX = 1 << 14
_STUB = 32


def patch(segment: bytes) -> bytes:
    """A shim's code with every hypercall instruction replaced; as it is if it has none.

    Its bytes cannot be told from data that looks the same, but they lie together: pairs, one of them in
    early_hypercall() and all others in one table. Raises :class:`Unsupported` where they do not.
    """
    found = [(match.start(), match[1]) for match in _EITHER.finditer(segment)]
    pairs = list(zip(found[::2], found[1::2], strict=False))
    tidy = (
        len(found) % 2 == 0
        and all((a, b) == (_AMD, _INTEL) and to - at <= _PAIR_MAX for (at, a), (to, b) in pairs)
        and (len(found) < 4 or found[-1][0] - found[2][0] <= _TABLE_MAX)
    )
    if not tidy:
        kinds = [kind for _, kind in found]
        raise Unsupported(
            f"cannot run this shim on a KVM without Xen support: its hypercall instructions cannot be told "
            f"from data ({kinds.count(_AMD)} VMMCALL, {kinds.count(_INTEL)} VMCALL). Use a shim of "
            'Xen 4.17 or newer, or accel = "kvm-xen" on a host that can.',
            feature="shim",
        )
    return _EITHER.sub(_OUT + _NOP, segment)


def check_kernel(notes: dict[int, bytes], msr_exits: bool) -> None:
    """Raise :class:`Unsupported` for a PVH kernel that cannot reach us; ``notes`` are its ELF notes."""
    linux = notes.get(XEN_ELFNOTE_GUEST_OS, b"").startswith(b"linux")
    if linux and XEN_ELFNOTE_HYPERCALL_PAGE not in notes:
        raise Unsupported(
            "cannot start this kernel by itself on a KVM without Xen support: it makes its hypercalls by an "
            'instruction that such a KVM keeps to itself. Use type = "pv", or a host whose KVM has Xen '
            "support (xenpvctl doctor tells).",
            feature="hypercalls",
        )
    if not msr_exits:
        raise Unsupported(
            "cannot start a PVH kernel on this host: its KVM has no Xen support, and does not show us the "
            'hypercall MSR (Linux 5.10 or newer does). Use type = "pv" or a newer kernel.',
            feature="hypercalls",
        )


def page() -> bytes:
    """The hypercall page: stub n, at n · 32, makes hypercall n (xen/include/public/arch-x86/xen.h)."""
    stubs = (b"\xb8" + pack("<I", n) + _OUT + b"\xc3" for n in range(PAGE_SIZE // _STUB))  # mov; out; ret
    return b"".join(stub.ljust(_STUB, b"\xcc") for stub in stubs)
