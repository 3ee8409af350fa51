"""libatomic on this process's memory: exact values, and nothing lost between threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

from xenpvd.vmm import atomic

THREADS, ROUNDS = 4, 2000


def race(act: Callable[[int], None]) -> None:
    start = threading.Barrier(THREADS)

    def run(n: int) -> None:
        start.wait()
        for _ in range(ROUNDS):
            act(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_bits() -> None:
    word = ctypes.c_uint64(0)
    at = ctypes.addressof(word)
    for bit in (0, 1, 31, 32, 63):
        assert not atomic.test_bit64(at, bit)
        assert not atomic.set_bit64(at, bit)
        assert atomic.set_bit64(at, bit)
        assert word.value == 1 << bit and atomic.test_bit64(at, bit)
        assert atomic.clear_bit64(at, bit)
        assert not atomic.clear_bit64(at, bit)
    word.value = 2**64 - 1
    atomic.clear_bit64(at, 63)
    assert word.value == 2**63 - 1


def test_bits_that_are_set_and_what_was_there() -> None:
    word = ctypes.c_uint64(5)
    assert atomic.fetch_or64(ctypes.addressof(word), 1 << 63 | 2) == 5
    assert word.value == 1 << 63 | 7


def test_cas16_touches_its_two_bytes_only() -> None:
    words = (ctypes.c_uint16 * 3)(1, 2, 3)
    at = ctypes.addressof(words) + 2
    assert not atomic.cas16(at, 1, 9)
    assert list(words) == [1, 2, 3]
    assert atomic.cas16(at, 2, 0xFFFF)
    assert list(words) == [1, 0xFFFF, 3]


def test_cas16_loses_nothing(busy_switching: None) -> None:
    word = ctypes.c_uint16(0)
    at = ctypes.addressof(word)

    def add(n: int) -> None:
        while not atomic.cas16(at, seen := word.value, seen + 1):
            pass

    race(add)
    assert word.value == THREADS * ROUNDS


def test_bits_of_one_word_lose_nothing(busy_switching: None) -> None:
    word = ctypes.c_uint64(0)
    at = ctypes.addressof(word)
    wrong: list[int] = []

    def flip(n: int) -> None:
        if atomic.set_bit64(at, n) or not atomic.clear_bit64(at, n):
            wrong.append(n)

    race(flip)
    assert wrong == [] and word.value == 0


def test_fence_can_be_called() -> None:
    atomic.fence()
