"""The life cycle with the real store: nodes and permissions, handshakes good and bad, waiting."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.device import BACKEND, FRONTEND, DeviceRig
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends import device
from xenpvd.backends.device import Frontend
from xenpvd.errors import GuestFault, TimedOut, XenpvdError, XenstoreFault

# ---- nodes


async def test_nodes_of_both_ends(rig: DeviceRig) -> None:
    assert rig.nodes(FRONTEND) == {"backend": BACKEND, "backend-id": "0", "colour": "red", "state": "1"}
    assert rig.nodes(BACKEND) == {
        "frontend": FRONTEND,
        "frontend-id": "1",
        "online": "1",
        "feature-x": "1",
        "state": "2",
    }


async def test_permissions(rig: DeviceRig) -> None:
    for path, perms in ((FRONTEND, ("n1", "r0")), (BACKEND, ("n0", "r1"))):
        assert {node.perms for node in rig.store.tree(path)} == {perms}
    # the guest can neither add devices to itself nor touch a backend's folder
    for path in ("/local/domain/1/device/test", "/local/domain/0/backend/test/1"):
        (node,) = rig.store.tree(path, 0)
        assert node.perms[0] == "n0"


async def test_stale_nodes_are_swept() -> None:
    rig = DeviceRig()
    rig.client.write(f"{FRONTEND}/ring-ref", "8")
    rig.client.write(f"{BACKEND}/error", "old")
    rig.start()
    assert "ring-ref" not in rig.nodes(FRONTEND) and "error" not in rig.nodes(BACKEND)
    await rig.device.close()


async def test_all_nodes_or_none() -> None:
    rig = DeviceRig()
    with pytest.raises(XenstoreFault):
        rig.device.start({}, {"not a node name": "1"})
    assert not rig.store.exists(FRONTEND) and not rig.store.exists(BACKEND)


# ---- handshakes


async def test_connect_close_and_reconnect(rig: DeviceRig) -> None:
    assert await rig.guest(S.Initialised) is S.Connected
    assert await rig.guest(S.Connected) is S.Connected
    assert rig.driver.calls == ["connect"]
    # Closing is agreed to while the ring still works; only Closed ends it
    assert await rig.guest(S.Closing) is S.Closing
    assert rig.driver.connected
    assert await rig.guest(S.Closed) is S.Closed
    assert rig.driver.calls == ["connect", "disconnect"]
    assert await rig.guest(S.Initialising) is S.InitWait
    assert await rig.guest(S.Initialised, S.Connected) is S.Connected
    assert rig.driver.calls == ["connect", "disconnect", "connect"]


async def test_what_the_operator_sees(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    assert list(dict.fromkeys(rig.driver.changes)) == [
        ("InitWait", "Initialising"),
        ("Connected", "Initialised"),
        ("Connected", "Connected"),
    ]


async def test_reconnect_a_thousand_times(rig: DeviceRig) -> None:  # L5
    for _ in range(1000):
        assert await rig.guest(S.Initialised) is S.Connected
        assert await rig.guest(S.Closed) is S.Closed
        assert await rig.guest(S.Initialising) is S.InitWait
    assert rig.driver.calls == ["connect", "disconnect"] * 1000


async def test_flip_between_initialised_and_closed(rig: DeviceRig) -> None:  # L2
    tasks = len(asyncio.all_tasks())
    for _ in range(500):
        await rig.guest(S.Initialised, S.Closed)
    assert rig.driver.calls == ["connect", "disconnect"] * 500
    assert len(asyncio.all_tasks()) == tasks


async def test_a_frontend_that_flips_too_fast_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "BURST", 4)
    monkeypatch.setattr(device, "RATE", 100.0)
    rig = DeviceRig()
    rig.start()
    await rig.settle()
    for _ in range(50):
        await rig.guest(S.Initialised, S.Closed)
    assert 4 <= len(rig.driver.calls) <= 10
    rig.write(S.Initialising)
    await rig.until(lambda: rig.device.state is S.InitWait)  # later, but what it wrote last counts
    await rig.device.close()


async def test_a_new_kernel_that_never_closed_the_old_ring(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    assert await rig.guest(S.Initialising) is S.InitWait
    assert not rig.driver.connected
    assert await rig.guest(S.Initialised) is S.Connected


@pytest.mark.parametrize("garbage", ["99", "abc", "", "-1", "4" * 1000, "\xff", "2", "7", "8"])
@pytest.mark.parametrize("before", [S.Initialising, S.Connected])
async def test_senseless_states_change_nothing(rig: DeviceRig, garbage: str, before: S) -> None:  # L1
    if before is S.Connected:
        await rig.guest(S.Initialised, S.Connected)
    own = rig.device.state
    assert await rig.guest(garbage) is own
    assert rig.driver.connected is (before is S.Connected)
    # and the device still works
    assert await rig.guest(S.Closed) is S.Closed
    assert await rig.guest(S.Initialising, S.Initialised) is S.Connected


async def test_skipped_states(rig: DeviceRig) -> None:  # L1
    assert await rig.guest(S.Connected) is S.Connected  # 1 → 4, as Mini-OS
    assert await rig.guest(S.Closed) is S.Closed
    assert await rig.guest(S.Connected) is S.Closed  # 6 → 4
    assert not rig.driver.connected


async def test_the_frontend_vanishes(rig: DeviceRig) -> None:  # L4
    await rig.guest(S.Initialised, S.Connected)
    rig.client.remove(FRONTEND)
    await rig.settle()
    assert rig.backend() is S.Closed
    assert rig.device.frontend_state is S.Unknown
    assert rig.driver.calls == ["connect", "disconnect"]


async def test_the_backends_nodes_vanish(rig: DeviceRig) -> None:
    rig.client.remove(BACKEND)
    await rig.guest(S.Initialised, S.Closed)
    assert rig.faults == []


# ---- faults


async def test_a_refused_connection(rig: DeviceRig) -> None:
    rig.driver.refuse = "ring-ref is missing"
    assert await rig.guest(S.Initialised) is S.Closing
    assert rig.nodes(BACKEND)["error"] == rig.device.error == "ring-ref is missing"
    # the frontend does not move: nor do we, however often it writes the same
    await rig.guest(S.Initialised, S.Initialised)
    assert rig.driver.calls == ["connect"]
    assert await rig.guest(S.Closed) is S.Closed
    assert rig.device.error == "ring-ref is missing"  # it was us who refused, not the guest
    rig.driver.refuse = None
    assert await rig.guest(S.Initialising, S.Initialised) is S.Connected
    assert rig.device.error is None and "error" not in rig.nodes(BACKEND)


async def test_a_fault_while_connected(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected)
    rig.device.fail("the ring is broken")
    await rig.settle()
    assert rig.backend() is S.Closing
    assert rig.nodes(BACKEND)["error"] == "the ring is broken"
    assert not rig.driver.connected
    assert await rig.guest(S.Closing, S.Closed) is S.Closed


async def test_a_fault_and_the_guest_close_at_once(rig: DeviceRig) -> None:
    """The steps do not overlap, whoever asks for them."""
    await rig.guest(S.Initialised, S.Connected)
    rig.driver.hold = asyncio.Event()
    rig.device.fail("the ring is broken")
    await rig.settle()
    rig.write(S.Closed)
    await rig.settle()
    assert rig.driver.calls == ["connect", "disconnect"]
    rig.driver.hold.set()
    await rig.settle()
    assert rig.driver.calls == ["connect", "disconnect"]
    assert rig.backend() is S.Closed


async def test_a_fault_after_the_end_writes_nothing(rig: DeviceRig) -> None:
    await rig.device.close()
    rig.device.fail("too late")
    await rig.settle()
    assert not rig.store.exists(BACKEND)


async def test_our_own_fault_reaches_the_owner(rig: DeviceRig) -> None:
    rig.driver.broken = ZeroDivisionError("ours")
    await rig.guest(S.Initialised)
    assert [type(fault) for fault in rig.faults] == [ZeroDivisionError]
    rig.faults.clear()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("8", 8),
        ("0008", 8),
        ("4294967295", 2**32 - 1),
        ("4294967296", None),
        ("99999999999999999999", None),
        ("-1", None),
        ("", None),
        ("x", None),
        (" 8", None),
        ("8\0", None),
        ("0x8", None),
        ("1_0", None),
        ("1" * 2000, None),
        (None, None),
    ],
)
async def test_numbers_of_the_guest(rig: DeviceRig, value: str | None, expected: int | None) -> None:
    if value is not None:
        rig.client.write(f"{FRONTEND}/ring-ref", value)
    frontend = Frontend(rig.client, FRONTEND)
    if expected is None:
        with pytest.raises(GuestFault, match="ring-ref"):
            frontend.number("ring-ref")
    else:
        assert frontend.number("ring-ref") == expected
    if value is None:
        assert frontend.number("ring-ref", 5) == 5


async def test_texts_of_the_guest(rig: DeviceRig) -> None:
    frontend = Frontend(rig.client, FRONTEND)
    assert frontend.text("protocol", "default") == "default"
    rig.client.write(f"{FRONTEND}/protocol", b"\xff\0abi")
    assert frontend.text("protocol", "default") == "\ufffd\0abi"


# ---- waiting


async def test_wait_connected(rig: DeviceRig) -> None:
    waiting = rig.spawn(rig.device.wait_connected(5))
    await rig.guest(S.Initialised)
    assert not waiting.done()  # both ends, not ours alone
    await rig.guest(S.Connected)
    await waiting
    await rig.device.wait_connected(5)


async def test_wait_connected_tells_why_not(rig: DeviceRig) -> None:
    with pytest.raises(
        TimedOut, match=r"xvdb is not connected after 0 s: the guest's end is Initialising\. It s"
    ):
        await rig.device.wait_connected(0)
    rig.driver.refuse = "protocol 'x' is not known"
    waiting = rig.spawn(rig.device.wait_connected(5))
    await rig.guest(S.Initialised)
    with pytest.raises(XenpvdError, match="protocol 'x' is not known"):
        await waiting


async def test_wait_connected_ends_with_the_device(rig: DeviceRig) -> None:
    waiting = rig.spawn(rig.device.wait_connected(5))
    await rig.settle()
    await rig.device.close()
    with pytest.raises(XenpvdError, match="removed meanwhile"):
        await waiting


GUEST_ERROR = "/local/domain/1/error/device/test/7/error"


@pytest.mark.parametrize("before", [[], [S.Initialised]])
@pytest.mark.parametrize("end", [S.Closing, S.Closed])
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (None, "it. See"),
        ("", "it. See"),
        ("\n", "it. See"),
        ("22 reading backend fields at x.", "it: 22 reading backend fields at x. See"),
        (b"22 \x1b[2Jx\r\n\0y\xff", "it: 22 [2Jxy\ufffd. See"),
        ("5" * 2000, f"it: {'5' * 200}…. See"),
    ],
)
async def test_the_guest_refuses(
    rig: DeviceRig, before: list[S], end: S, words: str | bytes | None, shown: str
) -> None:
    await rig.guest(*before)
    waiting = rig.spawn(rig.device.wait_connected(60))
    await rig.settle()
    if words is not None:
        rig.client.write(GUEST_ERROR, words)
    await rig.guest(end)
    assert waiting.done()  # at once
    why = f"xvdb did not connect: the guest refused {shown} the guest's console."
    with pytest.raises(XenpvdError) as refused:
        await waiting
    assert str(refused.value) == why
    await rig.guest(S.Closed)
    with pytest.raises(XenpvdError) as refused:  # and whoever asks later need not wait either
        await rig.device.wait_connected(60)
    assert str(refused.value) == why
    assert not rig.driver.connected


async def test_a_refusal_holds_until_the_next_try(rig: DeviceRig) -> None:
    for _ in range(2):
        await rig.guest(S.Initialised, S.Closing, S.Closed)
        assert rig.device.error == "the guest refused it"
        await rig.guest(S.Initialising)
        assert rig.device.error is None
    waiting = rig.spawn(rig.device.wait_connected(5))
    await rig.guest(S.Initialised, S.Connected)
    await waiting


async def test_a_reconnect_is_no_refusal(rig: DeviceRig) -> None:
    await rig.guest(S.Initialised, S.Connected, S.Closing)
    waiting = rig.spawn(rig.device.wait_connected(5))
    await rig.guest(S.Closed, S.Initialising, S.Initialised)
    assert not waiting.done() and rig.device.error is None
    await rig.guest(S.Connected)
    await waiting


async def test_what_the_guest_said_of_an_earlier_device_is_swept() -> None:
    rig = DeviceRig()
    rig.client.write(GUEST_ERROR, "old")
    rig.start()
    await rig.settle()
    await rig.guest(S.Closed)
    assert rig.device.error == "the guest refused it"
    await rig.device.close()
