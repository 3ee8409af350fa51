"""xenstore-ls, -read, -write, -rm."""

from __future__ import annotations

from tests.ctl.conftest import Xenpvctl
from tests.fakes.service import FakeService


def test_xenstore_ls(xenpvctl: Xenpvctl, service: FakeService) -> None:
    service.xenstore["/tool/escape"] = "\x1b[31mred\n\x9b".encode()
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
    assert service.xenstore["/tool/name"] == b"a b"
    assert xenpvctl.json("xenstore-write", "web1", "/tool/name", "\x1b[2J")["text"] == "\x1b[2J"
    assert xenpvctl("xenstore-read", "web1", "/tool/name").stdout == "\\x1b[2J\n"
    assert xenpvctl.json("xenstore-rm", "web1", "/tool/name") == {"removed": "/tool/name"}
    assert "there is no such node" in xenpvctl("xenstore-read", "web1", "/tool/name", status=1).stderr
    assert "path" in xenpvctl("xenstore-write", "web1", "tool", "1", status=2).stderr
