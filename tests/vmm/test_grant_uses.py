"""The counts of grants' uses: nothing is lost between threads, and nobody comes in between."""

from __future__ import annotations

import ctypes
import threading

from xenpvd.vmm.grant_uses import GrantUses


def test_counts_are_where_and_as_the_other_side_looks_for_them() -> None:
    uses = GrantUses(1024)
    assert uses.hold(700) == (0, 0)
    word = ctypes.c_uint64.from_address(uses.address + 700 * 8)
    assert word.value == 1 << 63
    uses.let_go(700, 5, 3)
    assert word.value == 3 << 32 | 5
    assert (uses.maps(700), uses.maps(699), uses.active(1024), uses.active(700)) == (5, 0, 1, 0)
    word.value = (1 << 31) - 1 << 32 | (1 << 32) - 1
    assert uses.hold(700) == ((1 << 32) - 1, (1 << 31) - 1)
    assert uses.maps(700) == (1 << 32) - 1, "also while it is held"


def test_one_at_a_time(busy_switching: None) -> None:
    uses, inside, most = GrantUses(8), 0, 0

    def use() -> None:
        nonlocal inside, most
        for n in range(1000):
            maps, writable = uses.hold(3)
            inside += 1
            most = max(most, inside)
            inside -= 1
            uses.let_go(3, maps + 1, writable + n % 2)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert uses.hold(3) == (3000, 1500)
