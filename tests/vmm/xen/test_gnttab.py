"""The grant table: what an entry must say to be mapped, and a guest that changes it meanwhile."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.fakes.guest_memory import FakeMemory, FakeUses
from xenpvd.abi.grant_table import (
    GRANTS_PER_FRAME,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
)
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EFAULT, EINVAL
from xenpvd.errors import GrantError, XenError
from xenpvd.vmm.xen.gnttab import INVALID_GFN, MAX_FRAMES, GrantTable

TABLE = 8  # the frame number where the first grant frame lies
GREF = 9


class Bench:
    def __init__(self) -> None:
        self.memory = FakeMemory()
        self.table = GrantTable(self.memory, FakeUses())
        self.table.set_frame(0, TABLE)

    def at(self, gref: int) -> int:
        return TABLE * PAGE_SIZE + gref * 8

    def grant(self, flags: int, domid: int = 0, frame: int = 20, gref: int = GREF) -> None:
        self.memory.write(self.at(gref), struct.pack("<HHI", flags, domid, frame))

    def flags(self, gref: int = GREF) -> int:
        return self.memory.word(self.at(gref), 2)

    def refusal(self, gref: int = GREF, *, readonly: bool = False) -> int:
        with pytest.raises(GrantError) as caught:
            self.table.claim(gref, readonly=readonly)
        return caught.value.status


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    "readonly, bits", [(True, GTF_reading), (False, GTF_reading | GTF_writing)], ids=["ro", "rw"]
)
def test_a_claim_tells_the_guest_and_its_release_too(bench: Bench, readonly: bool, bits: int) -> None:
    bench.grant(GTF_permit_access)
    assert bench.table.claim(GREF, readonly=readonly) == 20
    assert bench.flags() == GTF_permit_access | bits
    assert bench.table.active == 1
    bench.table.release(GREF, readonly=readonly)
    assert bench.flags() == GTF_permit_access
    assert bench.table.active == 0


def test_bits_stay_until_the_last_map_that_needs_them_is_gone(bench: Bench) -> None:
    bench.grant(GTF_permit_access)
    for readonly in (True, False, False):
        bench.table.claim(GREF, readonly=readonly)
    both = GTF_permit_access | GTF_reading | GTF_writing
    assert bench.flags() == both
    bench.table.release(GREF, readonly=False)
    assert bench.flags() == both
    bench.table.release(GREF, readonly=False)
    assert bench.flags() == GTF_permit_access | GTF_reading
    bench.table.release(GREF, readonly=True)
    assert bench.flags() == GTF_permit_access


@pytest.mark.parametrize(
    "flags, domid, frame, readonly, status",
    [
        (0, 0, 20, True, GNTST_bad_gntref),
        (2, 0, 20, True, GNTST_bad_gntref),  # GTF_accept_transfer
        (3, 0, 20, True, GNTST_bad_gntref),  # GTF_transitive
        (GTF_reading | GTF_writing, 0, 20, True, GNTST_bad_gntref),
        (GTF_permit_access, 1, 20, True, GNTST_bad_domain),
        (GTF_permit_access, 0x7FF0, 20, True, GNTST_bad_domain),
        (GTF_permit_access | GTF_readonly, 0, 20, False, GNTST_permission_denied),
        (GTF_permit_access, 0, 64, True, GNTST_bad_page),
        (GTF_permit_access, 0, 2**32 - 1, False, GNTST_bad_page),
    ],
)
def test_what_is_not_granted(
    bench: Bench, flags: int, domid: int, frame: int, readonly: bool, status: int
) -> None:
    bench.grant(flags, domid, frame)
    assert bench.refusal(readonly=readonly) == status
    assert bench.flags() == flags
    assert bench.table.active == 0


def test_a_read_only_grant_can_be_read(bench: Bench) -> None:
    bench.grant(GTF_permit_access | GTF_readonly)
    assert bench.table.claim(GREF, readonly=True) == 20
    assert bench.flags() == GTF_permit_access | GTF_readonly | GTF_reading


@pytest.mark.parametrize("gref", [GRANTS_PER_FRAME, GRANTS_PER_FRAME * MAX_FRAMES, 2**31, 2**32 - 1])
def test_references_beyond_the_table(bench: Bench, gref: int) -> None:
    assert bench.refusal(gref) == GNTST_bad_gntref


def test_without_a_table_nothing_is_granted() -> None:
    with pytest.raises(GrantError):
        GrantTable(FakeMemory(), FakeUses()).claim(0, readonly=True)


def test_a_guest_that_keeps_changing_the_entry_loses(bench: Bench) -> None:
    bench.grant(GTF_permit_access)
    tries = 0

    def refuse() -> bool:
        nonlocal tries
        tries += 1
        return True

    bench.memory.refuse_cas = refuse
    assert bench.refusal() == GNTST_eagain
    assert tries == 5 and bench.table.active == 0


def test_an_entry_withdrawn_before_our_swap_is_seen(bench: Bench) -> None:
    bench.grant(GTF_permit_access)

    def withdraw() -> bool:
        bench.grant(0)
        return False

    bench.memory.refuse_cas = withdraw
    assert bench.refusal() == GNTST_bad_gntref
    assert bench.flags() == 0


def test_a_release_gives_up_on_a_guest_that_races_and_counts_right(bench: Bench) -> None:
    bench.grant(GTF_permit_access)
    bench.table.claim(GREF, readonly=False)
    bench.memory.refuse_cas = lambda: True
    bench.table.release(GREF, readonly=False)
    assert bench.table.active == 0


def test_a_release_keeps_what_the_guest_has_put_there(bench: Bench) -> None:
    """The guest ended the access by force and uses the entry anew (D4): only our own bits go."""
    bench.grant(GTF_permit_access)
    bench.table.claim(GREF, readonly=False)
    bench.grant(GTF_permit_access | GTF_readonly, domid=7, frame=33)
    bench.table.release(GREF, readonly=False)
    assert bench.memory.read(bench.at(GREF), 8) == struct.pack(
        "<HHI", GTF_permit_access | GTF_readonly, 7, 33
    )


def test_the_frame_is_read_once(bench: Bench) -> None:
    """The frame that was checked is the frame that is returned (double fetch)."""
    bench.grant(GTF_permit_access, frame=20)

    def scribble() -> bool:
        bench.memory.write(bench.at(GREF) + 4, b"\xff\xff\xff\xff")
        return False

    bench.memory.refuse_cas = scribble
    assert bench.table.claim(GREF, readonly=False) == 20


# -- frames


def test_new_frames_are_zeroed_and_moved_ones_keep_their_entries(bench: Bench) -> None:
    bench.grant(GTF_permit_access)
    bench.table.claim(GREF, readonly=False)
    bench.memory.write(9 * PAGE_SIZE, b"\xaa" * PAGE_SIZE)
    bench.table.set_frame(1, 9)
    assert bench.memory.read(9 * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    bench.table.set_frame(0, 12)
    assert bench.table.nr_frames == 2
    assert bench.table.frames() == [12, 9]
    assert bench.memory.word(12 * PAGE_SIZE + GREF * 8, 2) == GTF_permit_access | GTF_reading | GTF_writing
    bench.table.release(GREF, readonly=False)
    assert bench.memory.word(12 * PAGE_SIZE + GREF * 8, 2) == GTF_permit_access


def test_frames_where_there_is_no_table_or_no_memory(bench: Bench) -> None:
    for idx, gfn, errno in ((MAX_FRAMES, 9, EINVAL), (2**64 - 1, 9, EINVAL), (1, 64, EFAULT)):
        with pytest.raises(XenError) as caught:
            bench.table.set_frame(idx, gfn)
        assert caught.value.errno == errno
    assert bench.table.nr_frames == 1


def test_the_table_is_as_long_as_its_last_frame(bench: Bench) -> None:
    bench.table.set_frame(3, 9)
    assert bench.table.nr_frames == 4
    assert bench.table.frames() == [TABLE, INVALID_GFN, INVALID_GFN, 9]
    assert GrantTable(FakeMemory(), FakeUses()).frames() == []


def test_an_entry_is_for_one_domain(bench: Bench) -> None:
    bench.grant(GTF_permit_access, domid=5)
    assert bench.refusal() == GNTST_bad_domain
    assert bench.table.claim(GREF, readonly=True, domid=5) == 20
    bench.table.release(GREF, readonly=True)
    assert bench.flags() == GTF_permit_access


def test_the_listing_has_what_is_granted(bench: Bench) -> None:
    bench.table.set_frame(2, 9)
    bench.grant(GTF_permit_access)
    bench.grant(GTF_permit_access | GTF_readonly, domid=7, frame=33, gref=11)
    bench.memory.write(9 * PAGE_SIZE + 8, struct.pack("<HHI", 3, 0, 1))
    bench.table.claim(GREF, readonly=False)
    in_use = GTF_permit_access | GTF_reading | GTF_writing
    assert bench.table.listing(100) == [
        (GREF, in_use, 0, 20, 1),
        (11, GTF_permit_access | GTF_readonly, 7, 33, 0),
        (2 * GRANTS_PER_FRAME + 1, 3, 0, 1, 0),
    ]
    assert [entry.gref for entry in bench.table.listing(2)] == [GREF, 11]
    assert bench.table.listing(0) == []


@given(
    page=st.binary(min_size=64, max_size=64),
    gref=st.integers(0, 7) | st.integers(0, 2**32 - 1),
    readonly=st.booleans(),
)
def test_any_entry_is_mapped_or_refused(page: bytes, gref: int, readonly: bool) -> None:
    bench = Bench()
    bench.memory.write(bench.at(0), page)
    before = bytes(bench.memory.bytes)
    try:
        gfn = bench.table.claim(gref, readonly=readonly)
    except GrantError as fault:
        assert fault.status < 0
    else:
        assert bench.memory.is_ram(gfn)
        bench.table.release(gref, readonly=readonly)
        own = GTF_reading | (0 if readonly else GTF_writing)
        at = bench.at(gref)
        before = before[:at] + bytes([before[at] & ~own]) + before[at + 1 :]
    assert bytes(bench.memory.bytes) == before


# -- random claims and releases against a model

GREFS = range(8, 12)


class Claims(RuleBasedStateMachine):
    """A guest that grants, withdraws and moves its table while domain 0 maps: the bits in an entry that the
    guest leaves alone say what is mapped, and every map is given back once."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.place = TABLE
        self.maps: list[tuple[int, bool]] = []
        #: entries since whose last change by the guest we have not been in them
        self.honest: dict[int, int] = {}

    def _at(self, gref: int) -> int:
        return self.place * PAGE_SIZE + gref * 8

    @rule(gref=st.sampled_from(GREFS), readonly=st.booleans(), domid=st.sampled_from([0, 0, 0, 1]))
    def grant(self, gref: int, readonly: bool, domid: int) -> None:
        if any(one == gref for one, _ in self.maps):
            return
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        self.bench.memory.write(self._at(gref), struct.pack("<HHI", flags, domid, gref))
        self.honest[gref] = flags if domid == 0 else 0

    @rule(gref=st.sampled_from(GREFS))
    def withdraw_by_force(self, gref: int) -> None:
        self.bench.memory.write(self._at(gref), bytes(8))
        self.honest.pop(gref, None)

    @rule(gref=st.sampled_from([*GREFS, 2**31]), readonly=st.booleans())
    def claim(self, gref: int, readonly: bool) -> None:
        flags = self.honest.get(gref, 0)
        if not flags or (flags & GTF_readonly and not readonly):
            self.bench.refusal(gref, readonly=readonly)
        else:
            assert self.bench.table.claim(gref, readonly=readonly) == gref
            self.maps.append((gref, readonly))

    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        if self.maps:
            gref, readonly = self.maps.pop(which % len(self.maps))
            self.bench.table.release(gref, readonly=readonly)

    @rule(gfn=st.sampled_from([TABLE, 30, 31]))
    def move(self, gfn: int) -> None:
        self.bench.table.set_frame(0, gfn)
        self.place = gfn

    @invariant()
    def agree(self) -> None:
        assert self.bench.table.active == len({gref for gref, _ in self.maps})
        counts = {gref: sum(one == gref for one, _ in self.maps) for gref in GREFS}
        listed = {entry.gref: entry for entry in self.bench.table.listing(100)}
        for gref, flags in self.honest.items():
            modes = {readonly for one, readonly in self.maps if one == gref}
            bits = (GTF_reading if modes else 0) | (GTF_writing if False in modes else 0)
            if flags:
                assert (listed[gref].flags, listed[gref].maps) == (flags | bits, counts[gref])


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
