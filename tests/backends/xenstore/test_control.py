"""XS_CONTROL's commands."""

from __future__ import annotations

import pytest

from tests.backends.xenstore.test_domain_ops import OK, World
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.perms import PRIVATE
from xenpvd.backends.xenstore.store import Node


@pytest.fixture
def world() -> World:
    return World()


def control(world: World, *words: bytes) -> bytes | str:
    return world.ask(0, abi.XS_CONTROL, b"".join(word + b"\0" for word in words))


@pytest.mark.parametrize(
    "words",
    [
        (),
        (b"",),
        (b"live-update",),
        (b"check", b"x"),
        (b"log", b"+hats"),
        (b"log", b"on", b"off"),
        (b"print",),
        (b"quota", b"set", b"nodes"),
        (b"quota", b"set", b"nodes", b"0"),
        (b"quota", b"set", b"hats", b"1"),
        (b"quota", b"x"),
        (b"quota", b"1", b"2"),
        (b"help", b"me"),
    ],
)
def test_what_it_does_not_take(world: World, words: tuple[bytes, ...]):
    assert control(world, *words) == "EINVAL"


def test_check_finds_what_does_not_fit_together(world: World):
    world.ask(0, abi.XS_WRITE, b"/a/b/c\0value")
    assert control(world, b"check") == OK and world.rings.printed == []
    root = world.state.store.find("/")
    assert root is not None
    root.add_child("ghost")
    world.state.store.put("/x/orphan", Node(b"", PRIVATE, 1))
    assert control(world, b"check") == b"2 faults: see the log\0"
    assert world.rings.printed == [
        "check: /: there is no ghost",
        "check: /x/orphan: its parent does not list it",
    ]


def test_log_prints_requests_while_it_is_on(world: World):
    assert b"requests : off" in control(world, b"log")  # type: ignore[operator]
    assert control(world, b"log", b"on") == OK
    world.rings.printed.clear()
    world.ask(1, abi.XS_READ, b"/no\0")
    assert world.rings.printed == ["d1 ring tx 0: READ /no -> EACCES"]
    assert b"requests : on" in control(world, b"log")  # type: ignore[operator]
    control(world, b"log", b"-requests")
    world.rings.printed.clear()
    world.ask(1, abi.XS_READ, b"/no\0")
    assert world.rings.printed == []


def test_what_is_printed_stays_on_its_line(world: World):
    assert control(world, b"print", b"a\nb\x1b[2J") == OK
    assert world.rings.printed == ["control: a\\nb\\x1b[2J"]


def test_quotas_and_what_a_domain_takes_of_them(world: World):
    world.ask(0, abi.XS_WRITE, b"/g\0")
    world.ask(0, abi.XS_SET_PERMS, b"/g\0n1\0")
    world.ask(1, abi.XS_WATCH, b"/g\0t\0")
    world.ask(1, abi.XS_TRANSACTION_START)
    assert control(world, b"quota", b"set", b"nodes", b"12") == OK
    assert "nodes              :       12" in control(world, b"quota").decode()  # type: ignore[union-attr]
    told = control(world, b"quota", b"1").decode()  # type: ignore[union-attr]
    assert [line.split()[-1] for line in told.splitlines()[1:4]] == ["1", "1", "1"]
    assert int(told.splitlines()[5].split()[-1]) == world.state.domains.of(1).memory > 0
    assert control(world, b"quota", b"9") == "ENOENT"


def test_help_names_every_command(world: World):
    told = control(world, b"help").decode()  # type: ignore[union-attr]
    assert [line.split()[0] for line in told.strip("\n\0").splitlines()] == [
        "check", "log", "print", "quota", "help"
    ]  # fmt: skip
