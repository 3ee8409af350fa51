from __future__ import annotations

from xenpvd.abi.io_xenbus import XenbusState


def test_numbers() -> None:
    assert [(state.name, int(state)) for state in XenbusState] == [
        ("Unknown", 0),
        ("Initialising", 1),
        ("InitWait", 2),
        ("Initialised", 3),
        ("Connected", 4),
        ("Closing", 5),
        ("Closed", 6),
        ("Reconfiguring", 7),
        ("Reconfigured", 8),
    ]
