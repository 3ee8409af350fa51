"""Bytes and operations that nobody in his right mind sends: what comes back is documented, or the end."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.backends.xenstore.transports import World, message
from tests.fakes.xenstore_frontend import Reply
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.call import call
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.request import State
from xenpvd.backends.xenstore.wire import Message

#: No shrinking: a failing example may take its 5 seconds each time.
FAST = (Phase.explicit, Phase.reuse, Phase.generate)

WORDS = st.sampled_from(
    [b"", b"\0", b"data\0", b"data/x\0", b"/\0", b"/local\0", b"t\0", b"n1\0", b"T\0", b"@releaseDomain\0",
     b"1\0", b"0\0", b"99999999999\0", b"check\0", b"quota\0", b"nodes\0", b"\xff\xfe\0", b"a" * 3000]
)  # fmt: skip
PAYLOADS = st.lists(WORDS, max_size=4).map(b"".join).map(lambda payload: payload[:4096])
TYPES = st.one_of(st.integers(0, 27), st.sampled_from([255, 65535, (1 << 32) - 1]))
MESSAGES = st.builds(message, TYPES, PAYLOADS, st.integers(0, 2**32 - 1), st.sampled_from([0, 0, 1, 77]))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Messages one after the other, some of them bent or cut off."""
    stream = b""
    for each in draw(st.lists(MESSAGES, max_size=6)):
        bent = bytearray(each)
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
            bent[draw(st.integers(0, len(bent) - 1))] = draw(st.integers(0, 255))
        stream += bytes(bent)
    return stream[: draw(st.integers(0, len(stream)))] if draw(st.booleans()) else stream


def whole(stream: bytes) -> tuple[list[tuple[int, int, int]], bool]:
    """(type, req_id, tx_id) of each whole request, and whether what follows them cannot be one."""
    requests = []
    while len(stream) >= 16:
        type_, req_id, tx_id, length = struct.unpack_from("<4I", stream)
        if length > 4096:
            return requests, True
        if len(stream) < 16 + length:
            break
        requests.append((type_, req_id, tx_id))
        stream = stream[16 + length :]
    return requests, False


async def feed(kind: str, stream: bytes, piece: int) -> None:
    requests, broken = whole(stream)
    with tempfile.TemporaryDirectory() as folder:
        world = World(kind, Path(folder))
        guest = await world.guest(1)
        try:
            await guest.send(stream, piece)
            for type_, req_id, tx_id in requests:
                reply = await next_reply(guest.receive)
                assert reply[1:3] == (req_id, tx_id)
                assert reply.type in (type_, abi.XS_ERROR)
                assert reply.type == type_ or reply.payload[:-1].decode() in abi.XSD_ERRORS.values()
            if broken:
                assert await guest.cut_off() == abi.XENSTORE_ERROR_PROTO
        except (ConnectionResetError, BrokenPipeError):
            assert kind == "socket" and broken, "it was cut off, and what it was told is lost with the socket"
        await world.assert_survived()
        await world.end()


async def next_reply(receive) -> Reply:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(10):
        while (reply := await receive()).type == abi.XS_WATCH_EVENT and reply.req_id == 0:
            pass
    return reply  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["ring", "socket"])
@given(stream=st.one_of(streams(), st.binary(max_size=200)), piece=st.sampled_from([1, 7, 16, 1024]))
@settings(max_examples=60, deadline=None, phases=FAST)
def test_bytes(kind: str, stream: bytes, piece: int) -> None:
    asyncio.run(feed(kind, stream, piece))


COMMON = {"EINVAL", "ENOENT", "EACCES"}
QUOTA = {"ENOSPC", "ENOMEM"}
#: what each operation may answer but success; docs/misc/xenstore.txt, and what its daemon does
ERRORS = {
    abi.XS_DIRECTORY: COMMON | {"E2BIG", "ENOSPC"},
    abi.XS_READ: COMMON | {"ENOSPC"},
    abi.XS_GET_PERMS: COMMON | {"ENOSPC"},
    abi.XS_WATCH: {"EINVAL", "EEXIST", "E2BIG", "ENOMEM"},
    abi.XS_UNWATCH: {"EINVAL", "ENOENT"},
    abi.XS_TRANSACTION_START: {"EBUSY", "ENOSPC", "ENOENT"},
    abi.XS_TRANSACTION_END: {"EINVAL", "ENOENT", "EAGAIN"} | QUOTA,
    abi.XS_INTRODUCE: {"EACCES", "EINVAL", "ENOENT"},
    abi.XS_RELEASE: COMMON,
    abi.XS_GET_DOMAIN_PATH: {"EINVAL", "ENOENT"},
    abi.XS_WRITE: COMMON | QUOTA,
    abi.XS_MKDIR: COMMON | QUOTA,
    abi.XS_RM: COMMON | QUOTA,
    abi.XS_SET_PERMS: COMMON | QUOTA | {"EPERM"},
    abi.XS_IS_DOMAIN_INTRODUCED: {"EACCES", "EINVAL", "ENOENT"},
    abi.XS_RESUME: COMMON,
    abi.XS_SET_TARGET: COMMON,
    abi.XS_RESET_WATCHES: {"ENOENT"},
    abi.XS_DIRECTORY_PART: COMMON | {"ENOSPC"},
    abi.XS_CONTROL: COMMON,
    abi.XS_GET_FEATURE: COMMON,
    abi.XS_SET_FEATURE: COMMON | {"EBUSY"},
    abi.XS_GET_QUOTA: COMMON,
    abi.XS_SET_QUOTA: COMMON,
}


@given(
    steps=st.lists(st.tuples(st.sampled_from([0, 1, 2]), TYPES, PAYLOADS, st.integers(0, 3)), max_size=30),
)
@settings(max_examples=150, deadline=None, phases=FAST)
def test_operations(steps: list[tuple[int, int, bytes, int]]) -> None:
    state = State()
    connections = [Connection(state.domains.of(domid)) for domid in range(3)]
    state.introduced |= {1: connections[1], 2: None}
    for domid in (1, 2):
        for path, perms in (
            (f"/local/domain/{domid}", b"n0\0r%d\0"),
            (f"/local/domain/{domid}/data", b"n%d\0"),
        ):
            call(state, connections[0], Message(abi.XS_MKDIR, 0, 0, path.encode() + b"\0"))
            call(
                state,
                connections[0],
                Message(abi.XS_SET_PERMS, 0, 0, path.encode() + b"\0" + perms % domid),
            )
    for who, type_, payload, tx in steps:
        deliveries = list(call(state, connections[who], Message(type_, 9, tx, payload)))
        (reply,) = [m for _, m in deliveries if m.type != abi.XS_WATCH_EVENT or m.req_id]
        assert reply[1:3] == (9, tx) and len(reply.payload) <= 4096
        if reply.type == abi.XS_ERROR:
            allowed = ERRORS.get(type_, {"ENOSYS"})
            assert reply.payload[:-1].decode() in allowed, (type_, payload)
        else:
            assert reply.type == type_ and type_ in ERRORS
    check = list(call(state, connections[0], Message(abi.XS_CONTROL, 1, 0, b"check\0")))
    assert check[-1].message.payload == b"OK\0"
