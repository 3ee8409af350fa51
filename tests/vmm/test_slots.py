"""Memory wherever a guest wants one of Xen's pages, within bounds."""

from __future__ import annotations

import errno

import pytest

from tests.fakes.kvm import FakeVm
from xenpvd.errors import HostError, KvmError, XenError
from xenpvd.vmm import layout, slots
from xenpvd.vmm.layout import GIB, MIB
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.slots import CLAIMS_MAX, Slots

RAM = 4 * MIB
FIRST = (4 * GIB) >> 12


class Bench:
    def __init__(self) -> None:
        self.vm = FakeVm()
        self.memory = GuestMemory()
        self.slots = Slots(self.vm, self.memory, 40)  # type: ignore[arg-type]
        self.slots.add("ram", 0, RAM, ram=True)
        self.slots.add("special", layout.SPECIAL, layout.SPECIAL_SIZE)

    def slot_sizes(self) -> dict[int, int]:
        return {gpa: size for gpa, size, _ in self.vm.slots.values()}


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("gfn", [RAM >> 12, FIRST, FIRST + 77, 0xE0000, (1 << 28) - 1])
def test_a_page_comes_where_there_is_none(bench: Bench, gfn: int) -> None:
    assert not bench.slots.is_backed(gfn)
    bench.slots.claim(gfn)
    assert bench.slots.is_backed(gfn) and not bench.memory.is_ram(gfn)
    assert bench.slot_sizes()[gfn << 12] == 4096
    assert bench.vm.slots[2][2] == bench.memory.address(gfn << 12, 4096)
    assert bench.memory.read(gfn << 12, 4096) == bytes(4096)
    bench.memory.write((gfn << 12) + 4, b"x")
    bench.slots.claim(gfn)
    assert len(bench.vm.slots) == 3 and bench.memory.read((gfn << 12) + 4, 1) == b"x"
    for gpa, length in (((gfn << 12) + 4095, 2), ((gfn << 12) - 1, 2)):
        with pytest.raises(XenError):
            bench.memory.read(gpa, length)


def test_ram_needs_no_claim(bench: Bench) -> None:
    bench.slots.claim(5)
    assert len(bench.vm.slots) == 2


@pytest.mark.parametrize(
    "gfn",
    [
        1 << 28,  # above what a CPU of 40 bits can address
        2**52,
        2**64 - 1,
        -1,
        0xFEE00,
        0xFEC00,
        layout.SPECIAL >> 12,
        layout.STORE_PFN,
        layout.ACPI >> 12,
        layout.TSS >> 12,
        layout.IDENTITY_MAP >> 12,
        0xFFFFF,
    ],
)
def test_where_no_page_can_be(bench: Bench, gfn: int) -> None:
    with pytest.raises(XenError) as caught:
        bench.slots.claim(gfn)
    assert caught.value.errno == errno.EINVAL
    assert not bench.slots.is_backed(gfn) and len(bench.vm.slots) == 2


def test_claims_are_bounded(bench: Bench) -> None:
    """E14: no memory of the host's without end."""
    for n in range(CLAIMS_MAX):
        bench.slots.claim(FIRST + n)
    with pytest.raises(XenError) as caught:
        bench.slots.claim(FIRST + CLAIMS_MAX)
    assert caught.value.errno == errno.ENOMEM
    bench.slots.claim(FIRST)
    assert len(set(bench.vm.slots)) == 2 + CLAIMS_MAX


def test_what_kvm_or_the_host_refuses_is_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.vm._fail_at = len(bench.vm.calls) + 1
    with pytest.raises(KvmError):
        bench.slots.claim(FIRST)
    assert not bench.slots.is_backed(FIRST) and bench.memory.claimed == 0

    def refuse(*args: object, **kwargs: object) -> None:
        raise HostError("no memory", 12, "claimed")

    with monkeypatch.context() as patch:
        patch.setattr(slots, "allocate", refuse)
        with pytest.raises(XenError) as caught:
            bench.slots.claim(FIRST)
        assert caught.value.errno == errno.ENOMEM
    bench.slots.claim(FIRST)
