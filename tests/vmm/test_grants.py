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


def test_disks_map_while_a_vcpu_moves_the_table(grants: Grants, memory: GuestMemory) -> None:
    """XENMEM_add_to_physmap on one thread, claims on others: no claim is lost in a frame left behind."""
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
    at = TABLE
    while any(thread.is_alive() for thread in disks):
        at = 8 + (at - 7) % 4
        grants.set_frame(0, at)
    for thread in disks:
        thread.join()
    assert faults == [] and grants.active == 0
    assert memory.read(at * PAGE_SIZE + GREF * 8, 2) == b"\x01\0"
