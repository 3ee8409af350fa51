"""The table: every own state with every frontend state, as io/blkif.h draws it and Linux' backend does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends.xenbus import TABLE, Step, otherend_changed, parse_state, refused

STAY, PREPARE, CONNECT, CLOSE, DISCONNECT = Step

#: Rows: own state; columns: the frontend Unknown, Initialising, InitWait, Initialised, Connected, Closing,
#: Closed, Reconfiguring, Reconfigured.
EXPECTED = {
    S.InitWait: (DISCONNECT, STAY, STAY, CONNECT, CONNECT, CLOSE, DISCONNECT, STAY, STAY),
    S.Connected: (DISCONNECT, PREPARE, STAY, STAY, STAY, CLOSE, DISCONNECT, STAY, STAY),
    S.Closing: (DISCONNECT, PREPARE, STAY, CONNECT, STAY, STAY, DISCONNECT, STAY, STAY),
    S.Closed: (STAY, PREPARE, STAY, CONNECT, STAY, STAY, STAY, STAY, STAY),
}


@pytest.mark.parametrize("own", EXPECTED)
@pytest.mark.parametrize("frontend", S)
def test_every_pair(own: S, frontend: S) -> None:
    step = EXPECTED[own][frontend]
    assert otherend_changed(own, frontend, online=True) is step
    opens = step in (PREPARE, CONNECT)
    assert otherend_changed(own, frontend, online=False) is (STAY if opens else step)


def test_the_table_has_no_row_more() -> None:
    assert set(TABLE) == set(EXPECTED)


@pytest.mark.parametrize("before", S)
@pytest.mark.parametrize("frontend", S)
def test_refused(before: S, frontend: S) -> None:
    connecting = before in (S.Initialising, S.InitWait, S.Initialised)
    assert refused(before, frontend) is (connecting and frontend in (S.Closing, S.Closed))


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (b"0", S.Unknown),
        (b"1", S.Initialising),
        (b"4", S.Connected),
        (b"8", S.Reconfigured),
        (b"06", S.Closed),
        (b"9", None),
        (b"99", None),
        (b"", None),
        (b"abc", None),
        (b"-1", None),
        (b"+4", None),
        (b" 4", None),
        (b"4\n", None),
        (b"4\0", None),
        (b"4_0", None),
        ("\N{ARABIC-INDIC DIGIT FOUR}".encode(), None),
        (b"4" * 1_000_000, None),
    ],
)
def test_parse_state(raw: bytes, state: S | None) -> None:
    assert parse_state(raw) is state


@given(st.binary(max_size=8))
def test_parse_state_never_raises(raw: bytes) -> None:
    state = parse_state(raw)
    assert state is None or int(raw) == state
