"""The synchronous client, against the real server and against servers that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ctl.conftest import Daemon
from xenpvd.ctl.client import Client, NoAnswer, RpcFault

HELLO = b'{"jsonrpc":"2.0","method":"daemon.hello","params":{"api":"1.7"}}\n'


@pytest.fixture
def path(run_dir: Path, daemon: Daemon) -> Path:
    return run_dir / "web1" / "rpc.sock"


def test_call(path: Path) -> None:
    with Client.connect(path) as client:
        assert client.hello["guest"] == "web1"
        assert client.call("guest.status")["state"] == "running"
        assert client.call("xenstore.list", {"path": "/tool"}) == ["name", "raw"]
        with pytest.raises(RpcFault) as fault:
            client.call("xenstore.read", {"path": "/none"})
    assert (fault.value.code, fault.value.data["error"]) == (1031, "ENOENT")


def test_notifications(path: Path, daemon: Daemon) -> None:
    with Client.connect(path) as client:
        client.call("events.subscribe", {"names": ["a"]})
        assert list(client.arrived()) == []
        daemon.do(lambda: daemon.service.events.publish("a", n=1))
        client.call("daemon.ping")
        daemon.do(lambda: daemon.service.events.publish("a", n=2))
        notes = client.notifications()
        for n in (1, 2):
            method, params = next(notes)
            assert (method, params["data"]) == ("event", {"n": n})


def test_arrived_takes_what_a_reply_brought_along(path: Path, daemon: Daemon) -> None:
    daemon.do(lambda: daemon.service.events.publish("a", n=1))
    with Client.connect(path) as client:
        client.call("events.subscribe", {"names": ["a"], "since": 0})
        client.call("daemon.ping")
        daemon.do(lambda: daemon.service.events.publish("a", n=2))
        seen: list[int] = []
        while 2 not in seen:
            seen += [params["data"]["n"] for _, params in client.arrived()]


def test_attach(path: Path, daemon: Daemon) -> None:
    daemon.do(lambda: daemon.service.console.print(b"before\xff"))
    with Client.connect(path) as client:
        result, sock, pending = client.attach("rw")
        (viewer,) = daemon.service.console.viewers
        assert result == {"mode": "rw", "offset": 0, "viewer": viewer.number}
        while len(pending) < 7:
            pending += sock.recv(100)
        assert pending == b"before\xff"
        sock.sendall(b"typed")
        daemon.wait(daemon.service.console.wait_typed(b"typed"))


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """A socket that says some bytes to who connects, and leaves."""
    threads = []

    def serve(said: bytes) -> Path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def run() -> None:
            with listener, listener.accept()[0] as sock:
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1000):
                    pass

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return tmp_path / "s"

    yield serve
    for thread in threads:
        thread.join(5)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "ended the connection"),
        (b"SSH-2.0-OpenSSH\n", "no JSON-RPC"),
        (b"[1]\n", "no JSON-RPC"),
        (HELLO.replace(b"1.7", b"2.0"), "another API"),
        (b'{"jsonrpc":"2.0","method":"x","params":{"api":"1.0"}}\n', "another API"),
    ],
)
def test_who_is_no_daemon(impostor: Callable[[bytes], Path], said: bytes, why: str) -> None:
    with pytest.raises(NoAnswer, match=why):
        Client.connect(impostor(said))


def test_a_full_daemon_says_so(impostor: Callable[[bytes], Path]) -> None:
    refusal = (
        b'{"jsonrpc":"2.0","error":{"code":1006,"message":"full","data":{"reason":"LIMIT"}},"id":null}\n'
    )
    with pytest.raises(RpcFault, match="full"):
        Client.connect(impostor(refusal))


def test_a_daemon_that_leaves_in_the_middle(impostor: Callable[[bytes], Path]) -> None:
    with Client.connect(impostor(HELLO + b'{"jsonrpc":"2.0","resu')) as client, pytest.raises(NoAnswer):
        client.call("daemon.ping")


def test_a_call_that_cannot_be_sent(impostor: Callable[[bytes], Path]) -> None:
    """Nobody would answer it."""
    with (
        Client.connect(impostor(HELLO)) as client,
        pytest.raises(NoAnswer, match=r"cannot call fd\.add: Bad file descriptor"),
    ):
        client.call("fd.add", {"name": "x"}, fd=1 << 20)


def test_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(NoAnswer, match="in time"):
            Client.connect(tmp_path / "s", timeout=0.02)


def test_nobody(tmp_path: Path, dead: str, run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client.connect(tmp_path / "none")
    with pytest.raises(ConnectionRefusedError):
        Client.connect(run_dir / dead / "rpc.sock")
