"""A daemon's words become those of the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import xenpvd
from tests.ctl.conftest import Daemon, Xenpvctl
from xenpvd.ctl.cli import cli
from xenpvd.ctl.words import PLACES, VERBS
from xenpvd.errors import BadConfig, Busy, PermissionRefused, StateError, XenpvdError
from xenpvd.rpc.methods import METHODS


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("drive add web1 nvme0 /b",
         "cannot use VDEV: it must be a disk's name, as xvda or xvdb1, or its number. "
         "See: xenpvctl drive add --help"),
        ("drive add web1 xvdb", "cannot use TARGET: a disk has one; only a cdrom can be empty. "),
        ("drive add web1 xvdb /b --ops -1", "cannot use --ops: it must be at least 0. "),
        ("drive add web1 xvdb /b --timeout -1", "cannot use --timeout: it must be at least 0. "),
        ("drive resize web1 xvdb 3", "cannot use SIZE: it must be at least 512. "),
        ("drive limit web1 xvdb --bytes 9T", "cannot use --bytes: it must be at most "),
        ("channel add web1 no:name", "cannot use CHANNEL: it takes letters, "),
        ("channel add web1 xen", "cannot use CHANNEL: xen is a console that every guest has. "),
        ("fd remove web1 no:name", "cannot use FD: it takes letters, "),
        ("memory set web1 1", "cannot use MIB: it must be at least 64. "),
        ("vcpu set web1 0", "cannot use COUNT: it must be at least 1. "),
        ("evtchn inject web1 0", "cannot use PORT: it must be at least 1. "),
        ("xenstore-read web1 tool", "cannot use PATH: it must be an absolute path. "),
        ("xenstore-ls web1 --depth -1", "cannot use --depth: it must be at least 0. "),
        ("xenstore-quota web1 " + "n" * 65 + "=1", "cannot use QUOTA: it must have at most 64 characters. "),
        ("xenstore-quota web1 nodes=9999999999", "cannot use LIMIT: it must be at most 4294967295. "),
        ("events web1 a" + "b" * 64, "cannot use PATTERNS: it must have at most 64 characters. "),
        ("kick web1 0", "cannot use VIEWER: it must be at least 1. "),
        ("log web1 -c " + "a" * 65, "cannot use --console: it must have at most 64 characters. "),
        ("log web1 --since 99999999d", "cannot use --since: it must be at most "),
    ],
)  # fmt: skip
def test_parameters(xenpvctl: Xenpvctl, daemon: Daemon, verb: str, words: str) -> None:
    said = xenpvctl(*verb.split(), status=2).stderr
    assert said.startswith(f"xenpvctl: {words}")
    assert not re.search(r"\b[a-z_]+\.[a-z_]+\b", said), "no method"


def test_who_calls_a_method_is_told_of_it(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    said = xenpvctl("call", "web1", "memory.set_target", "mib=1", status=2).stderr
    assert said == "xenpvctl: cannot call memory.set_target: mib: it must be at least 64.\n"


def test_a_definition(xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path) -> None:
    daemon.service.state = daemon.service.state.STOPPED
    (tmp_path / "web1.toml").write_text('kernel = "/k"\nmemory = 5\nhats = 3\n')
    said = xenpvctl("start", f"{tmp_path}/web1.toml", status=2).stderr
    assert said == (
        "xenpvctl: cannot use the definition: memory: it must be at least 64; hats: there is no such key. "
        "Mend these keys (xenpvd.toml).\n"
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (PermissionRefused("cannot call guest.destroy: you are viewer here.", need="operator"),
         "cannot do this: you are viewer here."),
        (StateError("there is no guest yet. Start one with guest.start.", "defined", []),
         "there is no guest yet. Start one with xenpvctl start FILE."),
        (StateError("there is no such drive. See drive.list.", "running", []),
         "there is no such drive. See xenpvctl drive list web1."),
        (StateError("it is gone. See web1.toml and rpc.sock.", "defined", []),
         "it is gone. See web1.toml and rpc.sock."),
    ],
)  # fmt: skip
def test_messages(xenpvctl: Xenpvctl, daemon: Daemon, fault: Exception, said: str) -> None:
    daemon.service.faults["guest_destroy"] = fault
    assert xenpvctl("destroy", "web1", status=1).stderr == f"xenpvctl: {said}\n"
    assert xenpvctl.json("destroy", "web1", status=1)["error"]["message"] == said


def test_the_name_of_a_descriptor(xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    said = xenpvctl("fd", "add", "web1", "da ta", f"{tmp_path}/image", status=2).stderr
    assert said.startswith("xenpvctl: cannot use FD: it takes letters, ")


@pytest.mark.parametrize(
    ("verb", "method", "fault", "said"),
    [
        ("drive resize web1 xvdb 1G", "drive_resize", BadConfig("no. Allow that with shrink, once it may."),
         "no. Allow that with --shrink, once it may."),
        ("drive remove web1 xvdb", "drive_remove", Busy("no. Wait for it, or use force."),
         "no. Wait for it, or use --force."),
        ("reset web1", "guest_reset", Busy("no. Wait, or use force."), "no. Wait, or use force."),
    ],
)  # fmt: skip
def test_a_flag_that_is_a_cure(
    xenpvctl: Xenpvctl, daemon: Daemon, verb: str, method: str, fault: XenpvdError, said: str
) -> None:
    daemon.service.faults[method] = fault
    status = 2 if isinstance(fault, BadConfig) else 1
    assert xenpvctl(*verb.split(), status=status).stderr == f"xenpvctl: {said}\n"


def test_a_fault_of_the_daemons_own(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    daemon.service.faults["guest_destroy"] = ValueError("broken")
    said = xenpvctl("destroy", "web1", status=1).stderr
    assert said.startswith("xenpvctl: that failed: a fault of the daemon, incident ")


def named(path: Path) -> Iterator[str]:
    """The methods that a file's messages speak of."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            words = (re.findall(r"\b[a-z_]+\.[a-z_]+\b", text) for text in texts if isinstance(text, str))
            yield from (word for found in words for word in found if word in METHODS)


def test_the_tables_are_complete() -> None:
    package = Path(xenpvd.__file__).parent
    others = [package / name for name in ("ctl", "client", "gateway", "rpc")]
    files = [path for path in package.rglob("*.py") if not any(path.is_relative_to(each) for each in others)]
    found = {method for path in files for method in named(path)}
    assert found <= VERBS.keys() <= METHODS.keys()
    for verb in VERBS.values():
        words, command = verb.format(name="web1").replace("VIEWER", "7").split(), cli
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]  # type: ignore[assignment]
        command.make_context("it", words)

    def places(command: click.Command) -> Iterator[str]:
        for param in command.params:
            yield from param.opts if isinstance(param, click.Option) else ((param.name or "").upper(),)
            yield from re.findall("[A-Z]+", param.metavar or "")
        if isinstance(command, click.Group):
            for each in command.commands.values():
                yield from places(each)

    assert set(PLACES.values()) <= set(places(cli))
