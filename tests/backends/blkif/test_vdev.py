from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.backends.blkif.vdev import devid
from xenpvd.errors import BadConfig


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 51712),
        ("xvdb", 51728),
        ("xvda1", 51713),
        ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvda16", 1 << 28 | 16),
        ("xvdz", 1 << 28 | 25 << 8),
        ("xvdaa", 1 << 28 | 26 << 8),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37),  # the manual page's example, also as
        ("d536p37", 1 << 28 | 536 << 8 | 37),
        ("d0", 51712),
        ("d0p0", 51712),
        ("d1p2", 51730),
        ("d1048575p255", 1 << 28 | 1048575 << 8 | 255),
        ("sda", 2048),
        ("sdb3", 2048 + 16 + 3),
        ("sdp15", 8 << 8 | 255),
        ("hda", 768),
        ("hdb1", 768 + 64 + 1),
        ("hdc2", 22 << 8 | 2),
        ("hdd63", 22 << 8 | 64 | 63),
        ("51712", 51712),
        ("0xca00", 51712),
        ("0XCA10", 51728),
        ("0145000", 51712),
        ("2048", 2048),
        ("65", 65),  # deprecated, and somebody's
        ("16640", 65 << 8),  # sdq, as Linux numbers it
        (f"{1 << 28 | 16 << 8}", 1 << 28 | 16 << 8),
        (f"{1 << 28 | 16}", 1 << 28 | 16),
        ("0x1fffffff", (2 << 28) - 1),
    ],
)
def test_numbers(vdev: str, number: int) -> None:
    assert devid(vdev) == number


NO_DISKS = (
    *("", "a", "d", "d-1", "d01", "d1p", "d1048576", "d0p256", "d0p01", "d\N{ARABIC-INDIC DIGIT THREE}"),
    *("xvd", "xvda0", "xvda01", "xvda256", "xvdA", "xvda ", "xvda1p1", "xvdzzzzzz", "xvda\n", "../x"),
    *("0", "00", "0x0", "-51712", "+51712", "51712 ", "51_712", "1.5", "0x", "08", "0o17", "0b1", "xca00"),
    *("0x20000000", "4294967296", "9999999999", "0xffffffff", "\N{ARABIC-INDIC DIGIT THREE}"),  # reserved
    *(f"{1 << 28}", f"{1 << 28 | 15 << 8 | 15}"),  # these have shorter ones
    *("vda", "sdq", "sda16", "hde", "hda64", "xvd\N{CYRILLIC SMALL LETTER A}"),
)


@pytest.mark.parametrize("vdev", NO_DISKS)
def test_refused(vdev: str) -> None:
    with pytest.raises(BadConfig, match="Use xvda") as refused:
        devid(vdev)
    assert refused.value.problems[0][0] == "vdev"


def test_the_short_number_of_an_extended_one_is_told() -> None:
    with pytest.raises(
        BadConfig, match=r"cannot use 0x10000102 as a disk's name: that disk's number is 51730\."
    ):
        devid("0x10000102")


@given(st.integers(0, 3 << 28))
def test_a_number_in_any_base_is_that_or_refused(number: int) -> None:
    found = set()
    for text in (f"{number}", f"{number:#x}", f"0{number:o}"):
        try:
            found.add(devid(text))
        except BadConfig:
            found.add(0)
    assert found in ({number}, {0})


@given(
    a=st.tuples(st.integers(0, 1 << 20), st.integers(0, 256)),
    b=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_no_two_disks_share_a_number(a: tuple[int, int], b: tuple[int, int]) -> None:
    numbers = []
    for disk, partition in (a, b):
        try:
            numbers.append(devid(f"d{disk}p{partition}"))
        except BadConfig:
            return
    assert (numbers[0] == numbers[1]) is (a == b)
    assert all(0 < number < 1 << 29 for number in numbers)
