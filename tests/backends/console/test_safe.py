"""Text for logs, that no terminal obeys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.backends.console.safe import SafeText


@pytest.mark.parametrize(
    ("data", "safe"),
    [
        (b"\x1b[31mred\x1b[0m\r\n\x07\x00\x7ft\tab \xc3\xa9\n", b".[31mred.[0m\n...t\tab \xc3\xa9\n"),
        (b"\xc2\x9b31m \x9b31m", b".31m .31m"),
        (b"latin-1 \xe4\xf6 \xe4", b"latin-1 \xe4\xf6 "),  # the last one may begin a character
        ("user\u202etxt.exe \u2066x\u2069\u2028".encode(), b"user.txt.exe .x.."),
        (b"a\rb\r\nc\r", b"a.b\nc"),
        ("日本 € 😀".encode(), "日本 € 😀".encode()),
    ],
)
def test_whole_and_byte_by_byte(data: bytes, safe: bytes) -> None:
    text = SafeText()
    assert SafeText().feed(data) == safe
    assert b"".join(text.feed(bytes([byte])) for byte in data) == safe
    rest = text.finish()
    assert rest == {b"\r": b".", b"\xe4": b"\xe4"}.get(data[-1:], b"") and text.finish() == b""


@given(
    st.lists(st.binary(max_size=6) | st.sampled_from([b"\r", b"\n", b"\xc2", b"\x9b", b"\xe2\x80", b"\xae"]))
)
def test_nothing_to_obey_however_it_comes(pieces: list[bytes]) -> None:
    text = SafeText()
    safe = b"".join(map(text.feed, pieces))
    assert safe == SafeText().feed(b"".join(pieces))
    for shown in (safe.decode("utf-8", "replace"), safe.decode("utf-8", "surrogateescape")):
        assert not [letter for letter in shown if ord(letter) < 32 and letter not in "\t\n"]
        assert not [letter for letter in shown if 0x7F <= ord(letter) < 0xA0 or letter == "\u202e"]
        assert not [letter for letter in shown if 0xDC80 <= ord(letter) < 0xDCA0]
