"""xenstore-ls, -read, -write, -rm, -watch, -history, -quota."""

from __future__ import annotations

import json

from tests.ctl.conftest import Daemon, Xenpvctl
from tests.fakes.service import FakeService


def test_xenstore_ls(xenpvctl: Xenpvctl, service: FakeService) -> None:
    service.xenstore.write("/tool/escape", "\x1b[31mred\n\x9b")
    assert xenpvctl("xenstore-ls", "web1").stdout.splitlines() == [
        'tool = ""',
        ' name = "web1"',
        ' raw = "\N{REPLACEMENT CHARACTER}\\u0000"',
        ' escape = "\\u001b[31mred\\n\\x9b"',
    ]
    assert (
        xenpvctl("xenstore-ls", "web1", "/tool", "-f", "-p").stdout.splitlines()[0]
        == '/tool/name = "web1"  (n0)'
    )
    assert xenpvctl.json("xenstore-ls", "web1", "/tool")[1]["value"] == "web1"


def test_read_write_and_remove(xenpvctl: Xenpvctl, service: FakeService) -> None:
    assert xenpvctl("xenstore-read", "web1", "/tool/name").stdout == "web1\n"
    assert xenpvctl("xenstore-read", "web1", "/tool/raw").stdout == "\\xff\\x00\n"
    assert xenpvctl("xenstore-write", "web1", "/tool/name", "a b").stdout == ""
    assert service.xenstore.read("/tool/name") == b"a b"
    assert xenpvctl.json("xenstore-write", "web1", "/tool/name", "\x1b[2J")["text"] == "\x1b[2J"
    assert xenpvctl("xenstore-read", "web1", "/tool/name").stdout == "\\x1b[2J\n"
    assert xenpvctl.json("xenstore-rm", "web1", "/tool/name") == {"removed": "/tool/name"}
    assert (
        "No such file or directory (ENOENT)"
        in xenpvctl("xenstore-read", "web1", "/tool/name", status=1).stderr
    )
    assert "path" in xenpvctl("xenstore-write", "web1", "tool", "1", status=2).stderr


def test_watch_prints_what_changes(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    store = daemon.service.xenstore
    watch = store.watch

    def begin(path: str) -> object:
        """Once the last one watches, something happens."""
        begun = watch(path)
        if path == "/other":
            store.write("/tool/name", "web2")
            store.write("/elsewhere", "")
            store.write("/other", "x")
        return begun

    store.watch = begin  # type: ignore[method-assign,assignment]
    lines = xenpvctl("xenstore-watch", "web1", "/tool", "/other", "-n", "3").stdout.splitlines()
    assert sorted(lines) == ["/other", "/tool", "/tool/name"]
    lines = xenpvctl("xenstore-watch", "web1", "/tool", "/other", "-n", "1", "--json").stdout.splitlines()
    assert json.loads(lines[0])["path"] == "/tool"
    assert "/a//b" in xenpvctl("xenstore-watch", "web1", "/a//b", status=1).stderr


def test_history(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    xenpvctl("xenstore-write", "web1", "/tool/name", "\x1b[2J")
    xenpvctl("xenstore-read", "web1", "/none", status=1)
    lines = xenpvctl("xenstore-history", "web1", "-n", "2").stdout.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == [
        "d0 rpc: WRITE /tool/name \\x1b[2J -> OK",
        "d0 rpc: READ /none -> ENOENT",
    ]
    assert len(xenpvctl.json("xenstore-history", "web1", "/tool/name")) == 2


def test_quota(xenpvctl: Xenpvctl, daemon: Daemon) -> None:
    lines = xenpvctl("xenstore-quota", "web1", "nodes=7").stdout.splitlines()
    assert lines[0].split() == ["QUOTA", "USED", "LIMIT"]
    assert lines[1].split() == ["nodes", "0", "7"]
    assert xenpvctl.json("xenstore-quota", "web1")[0] == {"name": "nodes", "limit": 7, "used": 0}
    for text in ("nodes", "=5", "nodes=" + "9" * 5000, "nodes=\N{ARABIC-INDIC DIGIT THREE}", "nodes=-1"):
        assert "nodes=2000" in xenpvctl("xenstore-quota", "web1", text, status=2).stderr
    assert "watch-events" in xenpvctl("xenstore-quota", "web1", "hats=1", status=1).stderr
