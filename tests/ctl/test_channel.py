"""channel add, remove, list; attaching to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon, Xenpvctl


def test_add_list_remove(
    xenpvctl: Xenpvctl, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add = ("channel", "add", "web1", "agent", "--number", "3", "--shared", "--log", "agent.log")
    assert xenpvctl(*add).stdout == "agent is device/console/3\n"
    assert xenpvctl(*add).stdout == "agent was there already, as device/console/3\n"
    assert "there is another" in xenpvctl("channel", "add", "web1", "agent", status=1).stderr
    rows = [line.split() for line in xenpvctl("channel", "list", "web1").stdout.splitlines()]
    assert rows[0] == ["CONSOLE", "NUMBER", "GUEST", "BYTES", "VIEWERS", "KEYBOARD", "LOG"]
    assert [row[:2] for row in rows[1:]] == [["0", "0"], ["xen", "-"], ["agent", "3"]]
    assert rows[3][-1] == str(tmp_path / "agent.log")
    daemon.do(lambda: daemon.service.consoles.get("agent").record(b"from hvc1\n"))
    assert xenpvctl("log", "web1", "-c", "agent").stdout == "from hvc1\n"
    assert xenpvctl("channel", "remove", "web1", "agent").stdout == "agent removed\n"
    assert xenpvctl("channel", "remove", "web1", "agent", "--missing-ok").stdout == "there was no agent\n"
    assert "there is no console" in xenpvctl("log", "web1", "-c", "agent", status=1).stderr


@pytest.mark.parametrize("name", ["0", "xen", "a/b", "", "x" * 65])
def test_names_that_cannot_be(xenpvctl: Xenpvctl, daemon: Daemon, name: str) -> None:
    assert "cannot use CHANNEL: " in xenpvctl("channel", "add", "web1", name, status=2).stderr
