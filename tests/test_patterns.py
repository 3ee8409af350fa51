"""Users' regular expressions: lines, what is refused, and that none takes long."""

from __future__ import annotations

import time

import pytest

from xenpvd import patterns


def test_lines_and_bytes() -> None:
    found = patterns.compile("^web1 (login): $").search(b"\xff\x00\nweb1 login: ")
    assert found is not None and found.span() == (3, 15) and found.groups() == (b"login",)
    assert patterns.compile("é").search("café".encode())


@pytest.mark.parametrize("pattern", ["(a", "a{2000}{2000}", "(?=a)", r"\1", "[z-a]", "*"])
def test_what_is_none(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        patterns.compile(pattern)
    assert capfd.readouterr() == ("", ""), "the library keeps quiet"


def test_no_pattern_takes_long() -> None:
    """For a backtracking engine this one is 2^65536 steps."""
    begin = time.thread_time()
    assert patterns.compile("(a+)+$b").search(b"a" * 65536) is None
    assert time.thread_time() - begin < 1
