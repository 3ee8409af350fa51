"""Where messages end, and what counts as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.rpc.framing import DEPTH_MAX, Framer, MessageTooLong, parse


def split(*chunks: bytes, limit: int = 1 << 20) -> list[bytes]:
    framer, found = Framer(limit), []
    for chunk in chunks:
        framer.feed(chunk)
        while (message := framer.next()) is not None:
            found.append(message)
    return found


SPLITS: list[tuple[str, bytes, list[bytes]]] = [
    ("lines", b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
    ("no newline", b'{"a":1}', [b'{"a":1}']),
    ("end to end", b'{"a":1}[2]{}', [b'{"a":1}', b"[2]", b"{}"]),
    ("crlf and blank lines", b"\r\n\n {}\r\n\t\n[]", [b"{}", b"[]"]),
    ("brackets in strings", b'{"a":"}]\\"}"}[]', [b'{"a":"}]\\"}"}', b"[]"]),
    ("escaped backslash ends a string", b'{"a":"\\\\"}{}', [b'{"a":"\\\\"}', b"{}"]),
    ("a newline ends an open string", b'{"a":"x\n{}', [b'{"a":"x', b"{}"]),
    ("a newline ends an escape", b'{"a":"x\\\n{}', [b'{"a":"x\\', b"{}"]),
    ("a newline ends an open object", b'{"a":\n{}', [b'{"a":', b"{}"]),
    ("a bare value takes its line", b"1\nnull x {}\n{}", [b"1", b"null x {}", b"{}"]),
    ("closers alone", b"}]\n{}", [b"}]", b"{}"]),
    ("not yet", b'{"a":', []),
]


@pytest.mark.parametrize(("data", "messages"), [row[1:] for row in SPLITS], ids=[row[0] for row in SPLITS])
def test_split(data: bytes, messages: list[bytes]) -> None:
    assert split(data) == messages
    assert split(*(data[i : i + 1] for i in range(len(data)))) == messages, "byte by byte"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(st.lists(json_values, max_size=3) | st.dictionaries(st.text(), json_values), max_size=4),
    st.data(),
)
def test_every_cut_gives_the_same_messages(values: list[Any], data: st.DataObject) -> None:
    stream = b"".join(json.dumps(value, ensure_ascii=False).encode() for value in values)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [parse(message) for message in split(*chunks)] == values


@given(st.binary(max_size=200), st.integers(1, 16))
def test_garbage_never_hides_the_next_line(garbage: bytes, step: int) -> None:
    """N1."""
    stream = garbage + b'\n{"after":1}\n'
    found = split(*(stream[i : i + step] for i in range(0, len(stream), step)))
    assert found[-1] == b'{"after":1}'


def test_too_long() -> None:
    assert split(b'["' + b"x" * 96 + b'"]', limit=100) == [b'["' + b"x" * 96 + b'"]']
    for data in (b'["' + b"x" * 97 + b'"]', b"x" * 101, b"[" * 101):
        with pytest.raises(MessageTooLong):
            split(data, limit=100)
    assert split(*[b"[1]" * 50] * 3, limit=4) == [b"[1]"] * 150, "the limit is one message's"


def test_finish_and_rest() -> None:
    framer = Framer()
    framer.feed(b'{}{"half')
    assert framer.next() == b"{}"
    assert framer.rest() == b'{"half'
    assert framer.next() is None
    assert framer.finish() == b'{"half'
    assert framer.finish() is None


REFUSED = [
    b"",
    b"{",
    b"[1,]",
    b"01",
    b"NaN",
    b"[Infinity]",
    b"[-Infinity]",
    b"[1e400]",
    b"1" * 5000,
    b'{"a":1,"a":2}',
    b'[{"x":{"a":1,"a":1}}]',
    b'"\\ud800"',
    b'"\xff"',
    b"\xef\xbb\xbf{}",
    '{"a":1}'.encode("utf-16"),
    b'"\x01"',
    b"'a'",
    b"[1] x",
    b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1),
    b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1),
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
]


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: repr(data[:20]))
def test_parse_refuses(data: bytes) -> None:
    """N1, N2, N3, N6, N7."""
    with pytest.raises(ValueError):
        parse(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"null", None),
        (b"1e3", 1000.0),
        (b"9" * 400, int("9" * 400)),
        (b'{"a":{"a":1}}', {"a": {"a": 1}}),
        (b'"\\ud83d\\ude00\\u0000"', "\N{GRINNING FACE}\0"),
        (b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_parse_takes(data: bytes, value: Any) -> None:
    found = parse(data)
    assert value is None or found == value
