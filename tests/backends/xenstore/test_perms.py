from __future__ import annotations

import pytest

from xenpvd.backends.xenstore import perms
from xenpvd.backends.xenstore.perms import OWNER, READ, WRITE
from xenpvd.errors import XenError

ALL = READ | WRITE | OWNER


@pytest.mark.parametrize("words", [["n0"], ["r1", "w2", "b3", "n4"], ["b65535"]])
def test_wire_form_and_back(words: list[str]):
    assert perms.words(perms.parse([word.encode() for word in words])) == words


@pytest.mark.parametrize(
    "word", [b"", b"n", b"x1", b"n-1", b"b1 ", b" r1", b"n65536", b"n99999999", b"r1x", b"R1", b"1", b"n\xb2"]
)
def test_malformed(word: bytes):
    with pytest.raises(XenError, match="Invalid argument"):
        perms.parse([b"n0", word])


def test_none_is_malformed():
    with pytest.raises(XenError):
        perms.parse([])


@pytest.mark.parametrize(
    ("words", "domid", "rights"),
    [
        ("n1", 0, ALL),
        ("n1", 1, ALL),
        ("n1", 2, 0),
        ("r1", 2, READ),
        ("w1", 2, WRITE),
        ("b1", 2, READ | WRITE),
        ("b1 n2", 2, 0),
        ("n1 r2 w2", 2, READ),
        ("n0 r1 b2", 2, READ | WRITE),
        ("n0 r0 r1", 3, 0),
    ],
)
def test_rights(words: str, domid: int, rights: int):
    assert perms.rights(perms.parse([word.encode() for word in words.split()]), (domid,)) == rights


def test_a_guest_owns_what_it_creates_and_domain_0_keeps_the_owner():
    parent = perms.parse([b"r0", b"b1"])
    assert perms.words(perms.inherited(parent, 1)) == ["r1", "b1"]
    assert perms.words(perms.inherited(parent, 0)) == ["r0", "b1"]
