"""TAB: the script, and what it completes, asked as the shells ask and in the shells themselves."""

from __future__ import annotations

import os
import pty
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.ctl.terminal import Session
from xenpvd import paths
from xenpvd.ctl import completion
from xenpvd.ctl.cli import cli
from xenpvd.ctl.rundir import RunDir
from xenpvd.jobs import Work
from xenpvd.rpc.methods import METHODS
from xenpvd.views import DescriptorInfo, Phase

#: what a shell's user types, without a start file of their own
SHELLS = {
    "bash": ("bash --norc -i", "source <(xenpvctl completion bash)"),
    "zsh": ("zsh -f -i", "autoload -Uz compinit; compinit -u -D; source <(xenpvctl completion zsh)"),
}


def complete(run_dir: Path, *words: str) -> list[CompletionItem]:
    """What there is for the last of ``words``."""
    shell = ShellComplete(cli, {}, "xenpvctl", "_XENPVCTL_COMPLETE")
    return shell.get_completions(["--run-dir", str(run_dir), *words[:-1]], words[-1])


def values(run_dir: Path, *words: str) -> list[str]:
    return [item.value for item in complete(run_dir, *words)]


def needs(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here: apt install {shell}")
    return found


def test_guests(run_dir: Path, daemon: Daemon, dead: str) -> None:
    (run_dir / "$(reboot)").mkdir()
    (run_dir / "$(reboot)" / "rpc.sock").touch()
    assert values(run_dir, "status", "") == ["gone", "web1"]
    assert values(run_dir, "status", "w") == ["web1"]
    assert values(run_dir, "drive", "list", "") == ["gone", "web1"]
    assert values(run_dir / "none", "status", "") == []


def test_every_name_of_a_guest_is_completed() -> None:
    def walk(command: click.Command) -> Iterator[click.Command]:
        yield command
        if isinstance(command, click.Group):
            for each in command.commands.values():
                yield from walk(each)

    without = [
        command.name
        for command in walk(cli)
        for param in command.params
        if param.name == "name"
        and isinstance(param, click.Argument)
        # click keeps it there
        and param._custom_shell_complete is not completion.guests
    ]
    assert without == []


def test_drives_consoles_and_viewers(run_dir: Path, daemon: Daemon, xenpvctl: Xenpvctl) -> None:
    xenpvctl("drive", "add", "web1", "xvdb", "/srv/b.img")
    xenpvctl("channel", "add", "web1", "agent")
    items = complete(run_dir, "drive", "resize", "web1", "xvd")
    assert ("xvdb", "/srv/b.img") in [(item.value, item.help) for item in items]
    for verb in ("remove", "resize", "limit", "flush", "swap", "eject"):
        assert "xvdb" in values(run_dir, "drive", verb, "web1", "x")
    assert values(run_dir, "drive", "resize", "web1", "sd") == []
    assert values(run_dir, "console", "web1", "-c", "") == ["0", "xen", "agent"]
    assert values(run_dir, "channel", "remove", "web1", "") == ["agent"]
    assert values(run_dir, "evtchn", "inject", "web1", "") == ["1", "2", "3"]
    viewer = daemon.do(lambda: daemon.service.consoles.attach("0", "ro", None, None, "me").number)
    assert values(run_dir, "kick", "web1", "") == [str(viewer)]


def test_descriptors_as_targets(run_dir: Path, daemon: Daemon) -> None:
    for name in ("data", "root"):
        daemon.service.descriptors[name] = DescriptorInfo(name, "file", "rw", 0)
    for verb in ("add", "swap"):
        drive = ("drive", verb, "web1", "xvdb")
        assert values(run_dir, *drive, "fd:") == ["fd:data", "fd:root"]
        assert values(run_dir, *drive, "fd:d") == ["fd:data"]
        items = [(item.type, item.value) for item in complete(run_dir, *drive, "fd")]
        assert items == [("file", "fd"), ("plain", "fd:data"), ("plain", "fd:root")]
        for word in ("", "f", "fd.img", "nbd:"):
            assert [item.type for item in complete(run_dir, *drive, word)] == ["file"]
    assert values(run_dir, "fd", "remove", "web1", "r") == ["root"]


def test_jobs(run_dir: Path, daemon: Daemon) -> None:
    def work() -> Work:
        yield 1
        return {}

    for _ in range(12):
        daemon.do(lambda: daemon.service.jobs.start("guest.dump", work(), 1, "bytes"))
    for verb in ("wait", "cancel"):
        assert values(run_dir, "job", verb, "web1", "1") == ["1", "10", "11", "12"]
    (item,) = complete(run_dir, "job", "wait", "web1", "7")
    assert item.help and item.help.startswith("guest.dump, ")


@pytest.mark.parametrize(
    ("words", "args", "incomplete", "said"),
    [
        ("drive add web1 xvdb fd : da", "drive add web1 xvdb", "fd:da", "data"),
        ("drive add web1 xvdb fd :", "drive add web1 xvdb", "fd:", "data"),
        ("drive add web1 xvdb fd", "drive add web1 xvdb", "fd", "fd:data"),
        ("drive add web1 xvdb fd:da", "drive add web1 xvdb", "fd:da", "fd:data"),  # no word ends there
        ("drive add web1 xvdb nbd : //a", "drive add web1 xvdb", "nbd://a", None),
        ("drive add web1 xvdb", "drive add web1", "xvdb", None),
        ("start --wait console : login web1", "start --wait console:login", "web1", None),
        ("wait web1 console : login : --ti", "wait web1 console:login:", "--ti", None),
        ("wait web1 console : login :  ", "wait web1 console:login:", "", None),  # a blank, then TAB
    ],
)
def test_words_with_a_colon_in_bash(
    monkeypatch: pytest.MonkeyPatch, words: str, args: str, incomplete: str, said: str | None
) -> None:
    monkeypatch.setenv("COMP_WORDS", f"xenpvctl {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) + words.endswith(" ")))
    class_ = get_completion_class("bash")
    assert class_ is not None
    bash = class_(cli, {}, "xenpvctl", "_XENPVCTL_COMPLETE")
    assert bash.get_completion_args() == (args.split(), incomplete)
    if said is not None:
        assert bash.format_completion(CompletionItem("fd:data")) == f"plain,{said}"


def test_the_words_of_the_api(run_dir: Path, daemon: Daemon) -> None:
    items = complete(run_dir, "call", "web1", "drive.re")
    assert [(item.value, item.help) for item in items] == [
        (name, METHODS[name].summary) for name in ("drive.remove", "drive.resize")
    ]
    assert set(values(run_dir, "call", "web1", "")) == set(METHODS)
    assert values(run_dir, "events", "web1", "drive.a") == ["drive.added"]
    assert values(run_dir, "log-level", "web1", "i") == ["info", "inherit"]
    assert values(run_dir, "daemon-log", "web1", "--level", "") == ["debug", "info", "warning", "error"]


def test_what_can_be_waited_for(run_dir: Path) -> None:
    """As much as the parser takes, but for signs, which no one else knows."""
    assert set(values(run_dir, "start", "--wait", "")) == {*Phase, "ready"}
    assert values(run_dir, "start", "--wait", "d") == ["devices"]


def test_a_folder_that_is_closed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(place: RunDir) -> list[str]:
        raise PermissionError("no")

    monkeypatch.setattr(RunDir, "_folders", closed)
    assert values(run_dir, "status", "") == []
    assert values(run_dir, "start", "w") == ["w"]


def test_files(run_dir: Path, daemon: Daemon) -> None:
    for words in (
        "check",
        "import-xl",
        "drive add web1 xvdb",
        "run --disk",
        "run --shim",
        "console web1 --pty",
    ):
        assert [(item.type, item.value) for item in complete(run_dir, *words.split(), "/e")] == [
            ("file", "/e")
        ]


def test_definitions_or_files(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "config_dirs", lambda: [tmp_path])
    for name in ("web1.toml", "web2.toml", "db.toml", "web3.cfg"):
        (tmp_path / name).touch()
    (run_dir / "web4").mkdir()
    (run_dir / "web4" / "definition").symlink_to("/srv/mine.toml")
    for verb in ("start", "check"):
        assert [(item.type, item.value) for item in complete(run_dir, verb, "w")] == [
            ("file", "w"),
            ("plain", "web1"),
            ("plain", "web2"),
            ("plain", "web4"),
        ]


def test_nobody_answers(run_dir: Path, dead: str) -> None:
    assert values(run_dir, "drive", "flush", dead, "") == []
    assert values(run_dir, "drive", "flush", "none", "") == []
    assert values(run_dir, "console", "-c", "") == []  # whose?


@pytest.mark.parametrize("greets", [False, True])
def test_a_daemon_that_hangs(run_dir: Path, greets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "ANSWER_TIMEOUT", 0.1)
    (run_dir / "mute").mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(run_dir / "mute" / "rpc.sock"))
        mute.listen()

        def greet() -> None:
            with mute.accept()[0] as peer:
                if greets:
                    peer.sendall(b'{"method": "daemon.hello", "params": {"api": "1.0"}}\n')
                while peer.recv(4096):
                    pass

        server = threading.Thread(target=greet)
        server.start()
        assert values(run_dir, "drive", "flush", "mute", "") == []
        server.join()  # the client has left


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(xenpvctl: Xenpvctl, shell: str) -> None:
    script = xenpvctl("completion", shell).stdout
    assert f"_XENPVCTL_COMPLETE={shell}_complete" in script
    assert xenpvctl.json("completion", shell) == {"shell": shell, "script": script}


@pytest.fixture
def installed(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """xenpvctl is on PATH, and finds the guests of this test."""
    script = tmp_path / "bin" / "xenpvctl"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m xenpvd.ctl.cli "$@"\n')
    script.chmod(0o755)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("XENPVD_RUN_DIR", str(run_dir))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_in_the_shell(shell: str, installed: None, daemon: Daemon, xenpvctl: Xenpvctl) -> None:
    needs(shell)
    xenpvctl("drive", "add", "web1", "xvdb", "/srv/b.img")
    daemon.service.descriptors["data"] = DescriptorInfo("data", "file", "rw", 0)
    command, setup = SHELLS[shell]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command.split(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    try:
        session = Session(process, master, slave)
        session.type(f"PS1='$ '; {setup}; echo rea''dy\n".encode())
        session.expect("ready")
        for typed, completed in (
            ("hyperc\t", "alls "),
            ("drive resi\t", "ze "),
            ("status w\t", "eb1 "),
            ("drive flush web1 xvd\t", "b "),
            ("drive swap web1 xvdb fd:d\t", "ata "),
            ("drive swap web1 xvdb fd:\t", "data "),
            ("drive swap web1 xvdb fd\t", ":data "),
            ("start --wait dev\t", "ices "),
            ("call web1 drive.resi\t", "ze "),
            ("log-level web1 war\t", "ning "),
        ):
            session.type(f"xenpvctl {typed}".encode())
            session.expect("xenpvctl " + typed.rstrip() + completed)
            session.type(b"\x15")  # ^U: away with the line
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_tab_in_fish(tmp_path: Path, installed: None, daemon: Daemon, xenpvctl: Xenpvctl) -> None:
    fish = needs("fish")
    xenpvctl("drive", "add", "web1", "xvdb", "/srv/b.img")
    script = tmp_path / "xenpvctl.fish"
    script.write_text(xenpvctl("completion", "fish").stdout)

    def tab(line: str) -> str:
        code = f"source {script}; complete -C '{line}'"
        argv = [fish, "--no-config", "-c", code]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout

    assert "web1\n" in tab("xenpvctl status w")
    assert "xvdb\t/srv/b.img\n" in tab("xenpvctl drive flush web1 x")
    daemon.service.descriptors["data"] = DescriptorInfo("data", "file", "rw", 0)
    assert "fd:data\n" in tab("xenpvctl drive swap web1 xvdb fd:d")
    assert "drive.resize\tHave the guest see" in tab("xenpvctl call web1 drive.resi")
    assert "devices\n" in tab("xenpvctl start --wait dev")
