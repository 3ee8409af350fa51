"""Atomic operations on memory shared with the guest, by libatomic (Python has none of its own).

``PyDLL`` keeps the GIL: the calls take well under a microsecond, less than giving the GIL up would.
"""

from __future__ import annotations

import ctypes

from xenpvd.errors import Unsupported

_SEQ_CST = 5

try:
    _lib = ctypes.PyDLL("libatomic.so.1")
except OSError as _fault:
    raise Unsupported(
        "cannot load libatomic.so.1: it is not installed. Install it with: apt install libatomic1",
        feature="libatomic",
    ) from _fault

_u16, _u64, _ptr, _int = ctypes.c_uint16, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int

_compare_exchange_2 = _lib["__atomic_compare_exchange_2"]
_compare_exchange_2.argtypes = (_ptr, _ptr, _u16, ctypes.c_bool, _int, _int)
_compare_exchange_2.restype = ctypes.c_bool
_fetch_or_8 = _lib["__atomic_fetch_or_8"]
_fetch_or_8.argtypes = (_ptr, _u64, _int)
_fetch_or_8.restype = _u64
_fetch_and_8 = _lib["__atomic_fetch_and_8"]
_fetch_and_8.argtypes = (_ptr, _u64, _int)
_fetch_and_8.restype = _u64
_thread_fence = _lib["atomic_thread_fence"]
_thread_fence.argtypes = (_int,)
_thread_fence.restype = None


def fence() -> None:
    """A full memory barrier."""
    _thread_fence(_SEQ_CST)


def cas16(address: int, expected: int, desired: int) -> bool:
    """Store ``desired`` (u16) at ``address`` if it holds ``expected``; True if it did."""
    slot = _u16(expected)
    return bool(_compare_exchange_2(address, ctypes.addressof(slot), desired, False, _SEQ_CST, _SEQ_CST))


def fetch_or64(address: int, bits: int) -> int:
    """Set ``bits`` of the u64 at ``address``; what it was before."""
    return int(_fetch_or_8(address, bits, _SEQ_CST))


def set_bit64(address: int, bit: int) -> bool:
    """Set a bit of the u64 at ``address``; True if it was set before."""
    return bool(_fetch_or_8(address, 1 << bit, _SEQ_CST) >> bit & 1)


def clear_bit64(address: int, bit: int) -> bool:
    """Clear a bit of the u64 at ``address``; True if it was set before."""
    return bool(_fetch_and_8(address, ~(1 << bit) & 0xFFFF_FFFF_FFFF_FFFF, _SEQ_CST) >> bit & 1)


def test_bit64(address: int, bit: int) -> bool:
    """Whether a bit of the u64 at ``address`` is set (one aligned load)."""
    return bool(_u64.from_address(address).value >> bit & 1)
