"""The backend's half of the xenbus state machine, sans-IO.

House rules: what decides on states is in this file, as one table; this file does not know what kind of
device it steers. The order of events that the table expects is drawn in io/blkif.h ("STATE DIAGRAMS").

A frontend may write anything to its ``state``. What is no number of ``enum xenbus_state`` says nothing and
is ignored; what is out of order changes nothing; only a frontend that is gone closes the device.
"""

from __future__ import annotations

from enum import Enum

from xenpvd.abi.io_xenbus import XenbusState

_DIGITS = frozenset(b"0123456789")


class Step(Enum):
    """What the backend does next; its own state afterwards is in brackets."""

    STAY = "nothing"
    PREPARE = "cut off what is connected and offer the device (InitWait)"
    CONNECT = "connect to the ring and port that the frontend offers (Connected)"
    CLOSE = "agree to close; the frontend may still have requests under way (Closing)"
    DISCONNECT = "cut off what is connected (Closed)"


def parse_state(raw: bytes) -> XenbusState | None:
    """The value of a ``state`` node; None for what is no number of ``enum xenbus_state``."""
    # The length first: int() of a million digits takes its time.
    if not 0 < len(raw) <= 4 or not _DIGITS.issuperset(raw):
        return None
    try:
        return XenbusState(int(raw))
    except ValueError:
        return None


_S = XenbusState

#: own state → new state of the frontend → step; what is not here is Step.STAY.
TABLE: dict[XenbusState, dict[XenbusState, Step]] = {
    _S.InitWait: {
        _S.Initialised: Step.CONNECT,
        _S.Connected: Step.CONNECT,  # Mini-OS goes there without Initialised
        _S.Closing: Step.CLOSE,
        _S.Closed: Step.DISCONNECT,
        _S.Unknown: Step.DISCONNECT,
    },
    _S.Connected: {
        _S.Initialising: Step.PREPARE,  # a new kernel (kexec) that never closed the old one's ring
        # Closing is answered by Closing and not by Closed at once: a Linux that powers off takes the first
        # for its answer and waits five seconds if it only ever sees the second (xenbus_otherend_changed).
        _S.Closing: Step.CLOSE,
        _S.Closed: Step.DISCONNECT,
        _S.Unknown: Step.DISCONNECT,
    },
    _S.Closing: {
        _S.Initialising: Step.PREPARE,  # it was Closed in between, quicker than its watch
        _S.Initialised: Step.CONNECT,
        _S.Closed: Step.DISCONNECT,
        _S.Unknown: Step.DISCONNECT,
    },
    _S.Closed: {
        _S.Initialising: Step.PREPARE,
        _S.Initialised: Step.CONNECT,  # it was Initialising in between, and did not wait for InitWait
    },
}

_OPENING = frozenset({Step.PREPARE, Step.CONNECT})

_CONNECTING = frozenset({_S.Initialising, _S.InitWait, _S.Initialised})
_ENDING = frozenset({_S.Closing, _S.Closed})


def refused(before: XenbusState, frontend: XenbusState) -> bool:
    """Whether the frontend gives up connecting. Linux goes Initialising, Initialised, Connected, and from the
    first two to Closing by xenbus_dev_fatal; from Closed to Initialising is a new try, and no refusal.
    """
    return before in _CONNECTING and frontend in _ENDING


def otherend_changed(own: XenbusState, frontend: XenbusState, *, online: bool) -> Step:
    """What a change of the frontend's state asks for; Unknown stands for a frontend that is gone.

    Only changes count: a fault leaves the frontend where it was, and must not be met again for ever.
    With ``online`` false (the device is being removed) nothing is opened any more.
    """
    step = TABLE[own].get(frontend, Step.STAY)
    return Step.STAY if step in _OPENING and not online else step
