from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.abi.io_xs_wire import XENSTORE_ERROR_PROTO
from xenpvd.backends.xenstore.wire import ConnectionFault, Message, Parser, encode, join, strings

u32 = st.integers(0, 2**32 - 1)
messages = st.lists(st.builds(Message, u32, u32, u32, st.binary(max_size=70)), max_size=6)


@given(messages, st.lists(st.integers(1, 40), min_size=1))
def test_any_pieces_give_the_same_messages(sent: list[Message], pieces: list[int]):
    stream = b"".join(map(encode, sent))
    parser, got, at = Parser(), [], 0
    while at < len(stream):
        for piece in pieces:
            parser.feed(stream[at : at + piece])
            at += piece
            while (message := parser.next()) is not None:
                got.append(message)
    assert got == sent
    assert parser.next() is None


@given(st.binary(max_size=200))
def test_noise_gives_messages_or_a_fault(noise: bytes):
    parser = Parser()
    parser.feed(noise)
    try:
        while parser.next() is not None:
            pass
    except ConnectionFault:
        assert any(noise)


@pytest.mark.parametrize("length", [4097, 2**31, 2**32 - 1])
def test_too_long_is_a_fault_once_the_header_is_there(length: int):
    parser = Parser()
    header = b"\2\0\0\0" + bytes(8) + length.to_bytes(4, "little")
    parser.feed(header[:15])
    assert parser.next() is None
    parser.feed(header[15:])
    with pytest.raises(ConnectionFault) as caught:
        parser.next()
    assert caught.value.error == XENSTORE_ERROR_PROTO


def test_the_longest_payload_passes():
    parser = Parser()
    parser.feed(encode(Message(11, 1, 2, bytes(4096))))
    assert parser.next() == Message(11, 1, 2, bytes(4096))


def test_strings_are_what_ends_with_nul():
    assert strings(b"") == []
    assert strings(b"a") == []
    assert strings(b"a\0\0b") == [b"a", b""]
    assert join("a", b"", "b") == b"a\0\0b\0"
