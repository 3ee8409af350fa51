"""How figures and faults look."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.ctl.terminal import MAIN, PYTHON
from xenpvd.ctl.client import NoAnswer, RpcFault
from xenpvd.ctl.output import (
    Failure,
    Verbs,
    duration,
    emit,
    failure_of,
    json_option,
    mib,
    moment,
    size,
    table,
)
from xenpvd.ctl.rundir import NoGuest
from xenpvd.rpc.methods.daemon import document


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0s"), (59.9, "59s"), (60, "1m0s"), (192, "3m12s"), (90061, "1d1h1m1s")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (20 << 30, "20.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (4096, "<1"), (1 << 20, "1"), (3 << 19, "1.5"), (1 << 40, "1048576")]
)
def test_mib(count: int, text: str) -> None:
    assert mib(count) == text


def test_moment() -> None:
    assert moment(1700000000.0456).endswith(".045")


def test_a_guests_words_do_not_steer_the_terminal() -> None:
    assert Failure("it said:\r\n\t\x1b[2J\x9bé\r\x7f").message == "it said:\n\t\\x1b[2J\\x9bé\\x0d\\x7f"


def test_table() -> None:
    assert list(table(("A", "BB"), [("x", 1), ("yyy", None)])) == ["A    BB", "x    1", "yyy  None"]
    assert list(table(("A", "BB"), [("x", 1), ("y", 100)], right=("BB",))) == ["A   BB", "x    1", "y  100"]
    assert list(table(("A", "BB"), [])) == ["A  BB"]


def test_a_table_steers_no_terminal_and_has_a_line_each_row() -> None:
    odd = [("a\x1b[31m", "b\nc\td"), ("\udcff", "é")]
    assert list(table(("A", "B"), odd)) == [
        "A          B",
        r"a\x1b[31m  b\x0ac\x09d",
        r"\xdcff     é",
    ]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (RpcFault(1005, "m", {"reason": "TIMEOUT"}), 4),
        (RpcFault(-32602, "m", {"reason": "VALIDATION"}), 2),
        (RpcFault(1001, "m", {"reason": "GUEST_STATE"}), 1),
        (RpcFault(-32603, "m", {}), 1),
        (NoGuest("m", "web1"), 3),
        (NoAnswer("m"), 1),
        (PermissionError("m"), 1),
    ],
)
def test_faults_have_a_status(fault: Exception, status: int) -> None:
    failure = failure_of(fault)
    assert (failure.exit_code, failure.message) == (status, "m")


@pytest.mark.parametrize("args", [["--json", "verb"], ["verb", "--json"]])
def test_json_is_taken_anywhere(args: list[str]) -> None:
    @click.group(cls=Verbs)
    @json_option
    def cli() -> None: ...

    @cli.command()
    @json_option
    @click.option("--fail", is_flag=True)
    def verb(fail: bool) -> Any:
        if fail:
            raise RpcFault(1004, "taken", {"reason": "BUSY"})
        emit({"a": 1}, ["for people"])

    assert CliRunner().invoke(cli, args).stdout == '{"a": 1}\n'
    assert CliRunner().invoke(cli, ["verb"]).stdout == "for people\n"
    failed = CliRunner().invoke(cli, [*args, "--fail"])
    assert failed.exit_code == 1
    assert json.loads(failed.stdout) == {
        "error": {"code": 1004, "reason": "BUSY", "message": "taken", "data": {"reason": "BUSY"}}
    }
    assert failed.stderr == "xenpvctl: taken\n"


@pytest.mark.parametrize(
    ("args", "status", "code", "reason", "data"),
    [
        (["status", "web2"], 3, 1002, "NOT_FOUND", {"kind": "guest", "name": "web2"}),
        (["status", "../x"], 3, 1002, "NOT_FOUND", {"kind": "guest", "name": "../x"}),
        (["start", "/none.toml"], 2, -32602, "VALIDATION", {}),
        (["status"], 2, -32602, "VALIDATION", {}),
        (["fly", "web1"], 2, -32602, "VALIDATION", {}),
        (["status", "web1", "--fly"], 2, -32602, "VALIDATION", {}),
        (["drive"], 2, -32602, "VALIDATION", {}),
        (["drive", "flush", "web1"], 2, -32602, "VALIDATION", {}),
        (["drive", "limit", "web1", "xvdb", "--burst", "5"], 2, -32602, "VALIDATION", {}),
        (["drive", "remove", "web1", "xvdb"], 1, 1002, "NOT_FOUND",
         {"reason": "NOT_FOUND", "kind": "drive", "name": "xvdb"}),
    ],
)  # fmt: skip
def test_a_failure_is_one_object(
    xenpvctl: Xenpvctl, daemon: Daemon, args: list[str], status: int, code: int, reason: str, data: object
) -> None:
    for words in (["--json", *args], [*args, "--json"]):
        failed = xenpvctl(*words, status=status)
        told = json.loads(failed.stdout)["error"]
        assert failed.stdout.count("\n") == 1
        assert (told["code"], told["reason"], told["data"]) == (code, reason, data)
        assert list(told) == ["code", "reason", "message", "data"]
        assert told["message"] in failed.stderr
        assert xenpvctl(*args, status=status).stdout == ""


def test_every_failure_has_a_code() -> None:
    codes = {error["code"]: reason for reason, error in document()["components"]["errors"].items()}
    for fault in (NoGuest("m", "web1"), NoAnswer("m"), PermissionError("m")):
        told = failure_of(fault).error
        assert codes[told["code"]] == told["reason"]
    for status in (1, 2, 3, 4):
        told = Failure("m", status).error
        assert codes[told["code"]] == told["reason"]
    assert Failure("m", 130).error["reason"] == "CANCELLED"


def test_a_value_that_looks_like_an_option(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    assert xenpvctl("xenstore-write", "web1", "/tool/name", "--", "--json").stdout == ""
    assert xenpvctl("xenstore-read", "web1", "/tool/name").stdout == "--json\n"
    xenpvctl("xenstore-write", "web1", "/tool/name", "--", "--run-dir=/none")
    assert xenpvctl("xenstore-read", "web1", "/tool/name").stdout == "--run-dir=/none\n"


@pytest.mark.parametrize("verb", [["log", "web1"], ["list"], ["console", "web1"], ["log", "web1", "--json"]])
def test_what_cannot_be_written_is_a_message(run_dir: Path, daemon: Daemon, verb: list[str]) -> None:
    daemon.do(lambda: daemon.service.console.print(b"hello"))
    command = [PYTHON, "-c", MAIN, sys.executable, "--run-dir", str(run_dir), *verb]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "xenpvctl: cannot go on: No space left on device. See where the output goes.\n"


def test_without_stdin_a_console_is_looked_at(run_dir: Path, daemon: Daemon) -> None:
    daemon.do(lambda: daemon.service.console.print(b"hello"))
    words = " ".join([PYTHON, "-c", f"'{MAIN}'", sys.executable, "--run-dir", str(run_dir), "console web1"])
    done = subprocess.run(["sh", "-c", f"{words} <&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello", "")


def test_what_was_interrupted_says_so() -> None:
    group = Verbs()

    @group.command()
    def waits() -> None:
        raise KeyboardInterrupt

    assert CliRunner().invoke(group, ["waits"]).exit_code == 130
