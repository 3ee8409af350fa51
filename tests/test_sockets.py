"""Unix sockets that appear whole; tests/rpc/test_server.py sees them through the RPC server."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from xenpvd.errors import HostError
from xenpvd.sockets import Credentials, credentials, listen


def test_it_listens_as_soon_as_it_is_there_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with listen(path, 0o600), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.sock"]


@pytest.mark.parametrize(
    ("name", "why"), [("no/a.sock", errno.ENOENT), ("x" * 120, errno.ENAMETOOLONG)], ids=["missing", "long"]
)
def test_a_place_that_cannot_be(tmp_path: Path, name: str, why: int) -> None:
    """N21."""
    with pytest.raises(HostError, match="cannot listen at") as caught:
        listen(tmp_path / name)
    assert caught.value.data["errno"] == why


async def test_who_is_at_the_other_end(tmp_path: Path) -> None:
    found: asyncio.Future[Credentials] = asyncio.get_running_loop().create_future()

    class Peer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            found.set_result(credentials(transport))
            transport.close()

    server = await asyncio.get_running_loop().create_unix_server(Peer, sock=listen(tmp_path / "a.sock"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "a.sock"))
        assert await found == (os.getpid(), os.getuid(), os.getgid(), tuple(os.getgroups()))
    server.close()


def test_nothing_but_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    """N21."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "file.new").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "folder", "link"):
        with pytest.raises(HostError, match="there is something else of that name"):
            listen(tmp_path / name)
    with listen(tmp_path / "served"):
        with pytest.raises(HostError, match="somebody serves there"):
            listen(tmp_path / "served")
    listen(tmp_path / "served").close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "file",
        "file.new",
        "folder",
        "link",
        "served",
    ]
    assert (tmp_path / "file").read_text() == (tmp_path / "file.new").read_text() == "precious"
