"""Grants of a guest mapped for backends, out of real guest memory and from several threads."""

from __future__ import annotations

import struct
import threading

import pytest

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import GrantError
from xenpvd.vmm.grants import Grants
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory

TABLE, GREF, FRAME = 8, 9, 20
FLAGS = TABLE * PAGE_SIZE + GREF * 8


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    memory = GuestMemory()
    memory.add("ram", 0, MIB, ram=True)
    return memory


@pytest.fixture
def grants(memory: GuestMemory) -> Grants:
    grants = Grants(memory)
    grants.set_frame(0, TABLE)
    memory.write(FLAGS, struct.pack("<HHI", 1, 0, FRAME))
    return grants


def test_a_grant_is_the_guests_page_until_it_is_given_back(grants: Grants, memory: GuestMemory) -> None:
    memory.write(FRAME * PAGE_SIZE, b"from the guest")
    grant = grants.map(GREF)
    assert grant.page.read(0, 14) == b"from the guest"
    grant.page.write(0, b"from domain 0!")
    assert memory.read(FRAME * PAGE_SIZE, 14) == b"from domain 0!"
    assert memory.read(FLAGS, 1) == b"\x19" and grants.active == 1
    grant.unmap()
    grant.unmap()
    assert memory.read(FLAGS, 1) == b"\x01" and grants.active == 0


def test_two_maps_of_one_reference_are_two(grants: Grants, memory: GuestMemory) -> None:
    first, second = grants.map(GREF, readonly=True), grants.map(GREF, readonly=True)
    first.unmap()
    first.unmap()
    assert memory.read(FLAGS, 1) == b"\x09"
    second.unmap()
    assert memory.read(FLAGS, 1) == b"\x01"


def test_a_refused_grant_leaves_nothing(grants: Grants) -> None:
    with pytest.raises(GrantError):
        grants.map(GREF + 1)
    assert grants.active == 0 and grants.nr_frames == 1


def test_a_page_that_was_given_back_cannot_be_mapped(grants: Grants, memory: GuestMemory) -> None:
    memory.discard(FRAME)
    with pytest.raises(GrantError):
        grants.map(GREF)
    assert memory.is_ram(FRAME) and not memory.is_there(FRAME)
    memory.populate(FRAME)
    grants.map(GREF).unmap()


def test_a_claim_is_not_lost_in_a_frame_that_a_vcpu_moves(
    grants: Grants, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XENMEM_add_to_physmap on a vCPU's thread waits for a disk's claim, and takes it along."""
    mover = threading.Thread(target=grants.set_frame, args=(0, TABLE + 1))
    cas16 = memory.cas16

    def slow_cas16(gpa: int, expected: int, desired: int) -> bool:
        monkeypatch.undo()
        mover.start()
        mover.join(0.05)
        return cas16(gpa, expected, desired)

    monkeypatch.setattr(memory, "cas16", slow_cas16)
    grant = grants.map(GREF)
    mover.join()
    assert memory.read(FLAGS + PAGE_SIZE, 1) == b"\x19"
    grant.unmap()
    assert memory.read(FLAGS + PAGE_SIZE, 1) == b"\x01"


def test_many_threads_keep_the_count(grants: Grants, memory: GuestMemory) -> None:
    faults: list[BaseException] = []

    def disk() -> None:
        try:
            for _ in range(300):
                grants.map(GREF).unmap()
        except BaseException as fault:
            faults.append(fault)

    disks = [threading.Thread(target=disk) for _ in range(3)]
    for thread in disks:
        thread.start()
    for thread in disks:
        thread.join()
    assert faults == [] and grants.active == 0
    assert memory.read(FLAGS, 1) == b"\x01"
