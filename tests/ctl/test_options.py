"""Options that mean the same with every verb, and those that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from tests.ctl.conftest import Daemon, Xenpvctl
from xenpvd.ctl.cli import cli


@pytest.mark.parametrize(
    ("verb", "both"),
    [
        ("shutdown web1 --reboot --halt", "--reboot and --halt"),
        ("console web1 --ro --steal", "--ro and --steal"),
        ("console web1 --pty /tmp/none -e ^A", "--escape and --pty"),
        ("start web1 --paused --wait devices", "--wait and --paused"),
        ("drive add web1 xvdb /b --no-wait --timeout 3", "--no-wait and --timeout"),
        ("channel add web1 agent --no-wait --timeout 3", "--no-wait and --timeout"),
        ("vcpu set web1 1 --no-wait --timeout 3", "--no-wait and --timeout"),
        ("memory set web1 128 --no-wait --timeout 3", "--no-wait and --timeout"),
    ],
)
def test_contradictions_do_nothing(xenpvctl: Xenpvctl, daemon: Daemon, verb: str, both: str) -> None:
    said = xenpvctl(*verb.split(), status=2).stderr
    assert f"{both} contradict each other. Give one of them." in said
    assert daemon.service.done == []


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("drive limit web1 xvdb --burst 5", "--burst alone limits nothing"),
        ("drive add web1 xvdb /b --burst 5", "--burst alone limits nothing"),
        ("run --kernel /k --type pvh --shim /s", "leave out --shim"),
    ],
)
def test_options_that_would_do_nothing(xenpvctl: Xenpvctl, daemon: Daemon, verb: str, words: str) -> None:
    assert words in xenpvctl(*verb.split(), status=2).stderr


def test_one_of_them_is_enough(xenpvctl: Xenpvctl, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    assert xenpvctl.json("shutdown", "web1", "--reboot", "--reboot")["mode"] == "reboot"
    assert xenpvctl.json("shutdown", "web1", "--halt")["mode"] == "halt"
    monkeypatch.setenv("XENPVCTL_ESCAPE", "^A")  # of a start file of the shell's, and no contradiction
    assert "no guest called web2" in xenpvctl("console", "web2", "--pty", "/tmp/none", status=3).stderr


def options() -> Iterator[tuple[str, click.Option]]:
    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Option]]:
        yield from ((name, param) for param in command.params if isinstance(param, click.Option))
        if isinstance(command, click.Group):
            for word, each in command.commands.items():
                yield from walk(f"{name} {word}".strip(), each)

    return walk("", cli)


def test_a_short_option_means_one_thing() -> None:
    longs: dict[str, set[str]] = {}
    for _, option in options():
        for short in option.opts:
            if not short.startswith("--"):
                longs.setdefault(short, set()).add(max(option.opts, key=len))
    assert longs.pop("-n") == {"--lines", "--recent"}  # both the newest N, of lines and of calls
    assert longs.pop("-f") == {"--follow", "--full"}  # as of tail, and of Xen's own xenstore-ls
    assert all(len(each) == 1 for each in longs.values()), longs
    names = {name for _, option in options() for name in option.opts}
    assert not names & {"--max", "--count", "--number-of-lines", "--newest"}
