"""What programs written for QEMU see of a guest's lives."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from xenpvd.events import Event
from xenpvd.rpc.events import EVENTS
from xenpvd.rpc.qmp.events import NAMES, Told, Translator
from xenpvd.rpc.qmp.names import Device, Names


def told(*events: tuple[str, dict[str, Any]], names: Names | None = None) -> list[Told]:
    translator = Translator(names or Names())
    return [told for name, data in events for told in translator.translate(Event(1, 1.5, name, data))]


def moves(*path: str) -> list[tuple[str, dict[str, Any]]]:
    """States with reasons, ``running:``, one after the other."""
    states = [step.partition(":")[::2] for step in path]
    return [
        ("guest.state", {"from": before, "to": now, "reason": reason or None})
        for (before, _), (now, reason) in pairwise(states)
    ]


def test_all_that_is_translated_exists() -> None:
    assert set(NAMES) <= set(EVENTS)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("defined starting running", []),
        ("defined starting paused", []),
        ("running paused", [("STOP", {})]),
        ("paused running", [("RESUME", {})]),
        (
            "running stopping:poweroff stopped:poweroff",
            [("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})],
        ),
        (
            "running stopping:reboot starting:reboot running",
            [("RESET", {"guest": True, "reason": "guest-reset"})],
        ),
        (
            "running stopping:reboot stopped:reboot",
            [("SHUTDOWN", {"guest": True, "reason": "guest-reset"})],
        ),
        (
            "running stopping:reset starting:reset running",
            [("RESET", {"guest": False, "reason": "host-qmp-system-reset"})],
        ),
        (
            "paused stopping:destroyed stopped:destroyed",
            [("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})],
        ),
        (
            "running stopping:watchdog starting:restart starting running",
            [("RESET", {"guest": True, "reason": "guest-reset"})],
        ),
        (
            "running stopping:crash crashed:crash stopped:destroyed",
            [("SHUTDOWN", {"guest": True, "reason": "guest-panic"})],
        ),
        (
            "running stopping:reset starting:reset crashed:gone",
            [
                ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}),
                ("SHUTDOWN", {"guest": False, "reason": "host-error"}),
            ],
        ),
        (
            "running stopping:crash starting:restart stopped:destroyed",
            [
                ("RESET", {"guest": True, "reason": "guest-panic"}),
                ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}),
            ],
        ),
    ],
)
def test_states(path: str, expected: list[Told]) -> None:
    assert told(*moves(*path.split())) == expected


def test_a_panic() -> None:
    assert told(("guest.crash", {"reason": "crash"})) == [("GUEST_PANICKED", {"action": "poweroff"})]
    assert told(("guest.crash", {"reason": "fault"})) == [("GUEST_PANICKED", {"action": "poweroff"})]
    assert told(("guest.crash", {"reason": "watchdog"})) == []


def test_a_wish_to_shut_down() -> None:
    assert told(("guest.shutdown", {"mode": "poweroff"})) == [("POWERDOWN", {})]
    assert told(("guest.shutdown", {"mode": "reboot"})) == []


def test_a_disk_is_gone() -> None:
    names = Names()
    names.claim(Device("data", "xvdb"), [])
    expected = [
        ("DEVICE_DELETED", {"device": "data", "path": "/machine/peripheral/data"}),
        ("DEVICE_DELETED", {"device": "xvdb", "path": "/machine/peripheral/xvdb"}),
    ]
    gone = ("drive.removed", {"vdev": "xvdb", "forced": False})
    assert told(gone, gone, names=names) == expected, "its id went with it"


def test_a_guest_that_ends_takes_its_devices_along() -> None:
    names = Names()
    names.claim(Device("data", "xvdb"), [])
    told(*moves("running", "stopping:reboot", "starting", "running"), names=names)
    assert names.of("xvdb").id == "data", "a reboot keeps them"
    told(*moves("running", "stopping:poweroff", "stopped:poweroff"), names=names)
    assert names.of("xvdb").id == "xvdb"
