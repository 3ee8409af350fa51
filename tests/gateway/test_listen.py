"""Where the gateway listens, what it refuses, and TLS with certificates of our own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import aiohttp
import pytest

from tests.gateway.conftest import ADD, PING, Host, bearer, tokens
from tests.gateway.openssl import client, needs_openssl
from xenpvd.errors import BadConfig, HostError
from xenpvd.gateway import listen
from xenpvd.gateway.access import Certificates, Tokens
from xenpvd.gateway.config import ClientConfig, TlsConfig
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.server import Gateway


async def serve(host: Host, certificates: Path, known: Tokens, given: bool) -> tuple[Gateway, str]:
    """``given``: a client may come without a certificate."""
    config = TlsConfig(certificate="host.crt", key="host.key", client_ca="ours.crt")
    context = listen.context(config, certificates, tokens=given)
    authorities = [ca["subject"] for ca in context.get_ca_certs()]
    people = Certificates([ClientConfig(name="alice", role="operator", guests="web*")], authorities)
    gateway, place = Gateway(Guests(host.run_dir), known, people), listen.bind("127.0.0.1:0")
    listen.check("here", place, tls=True)
    await gateway.start([place], context)
    return gateway, f"https://localhost:{place.getsockname()[1]}"


@needs_openssl
async def test_what_a_client_has_signed_lets_nobody_in(host: Host, certificates: Path) -> None:
    """mallory's certificate is a CA's, too; TLS is content with the chain."""
    gateway, url = await serve(host, certificates, tokens(), given=False)
    async with aiohttp.ClientSession(url) as web:
        async with web.get("/v1/guests", ssl=client(certificates, "mallorys-alice")) as reply:
            assert reply.status == 401
        async with web.get("/v1/guests", ssl=client(certificates, "alice")) as reply:
            assert reply.status == 200
    await gateway.stop()


@needs_openssl
async def test_who_a_certificate_lets_in(host: Host, certificates: Path) -> None:
    gateway, url = await serve(host, certificates, tokens(), given=True)
    async with aiohttp.ClientSession(url) as web:
        alice, mallory, nobody = (client(certificates, name) for name in ("alice", "mallory", None))
        async with web.post("/v1/guests/web1/rpc", json=ADD, ssl=alice) as reply:
            assert reply.status == 200 and "result" in await reply.json()
        async with web.post("/v1/guests/db1/rpc", json=ADD, ssl=alice) as reply:
            assert reply.status == 404
        async with web.ws_connect("/v1/guests/web1/rpc", ssl=alice) as ws:
            assert (await ws.receive_json(timeout=5))["params"]["role"] == "operator"
        for context in (mallory, nobody):
            async with web.get("/v1/guests", ssl=context) as reply:
                assert reply.status == 401
            async with web.get("/v1/guests", ssl=context, headers=bearer("viewer")) as reply:
                assert (await reply.json())["role"] == "viewer"
        wrong = {"Authorization": "Bearer wrong"}
        async with web.get("/v1/guests", ssl=alice, headers=wrong) as reply:
            assert reply.status == 401, "a wrong token is not made good"
        with pytest.raises(aiohttp.ClientError):
            async with web.get("/healthz", ssl=client(certificates, "false-alice")) as reply:
                pass
    async with aiohttp.ClientSession(url.replace("https", "http")) as web:
        with pytest.raises(aiohttp.ClientError):
            await web.get("/healthz")
    await gateway.stop()


@needs_openssl
async def test_without_tokens_nobody_comes_without_a_certificate(host: Host, certificates: Path) -> None:
    gateway, url = await serve(host, certificates, Tokens(), given=False)
    async with aiohttp.ClientSession(url) as web:
        with pytest.raises(aiohttp.ClientError):
            async with web.get("/healthz", ssl=client(certificates)) as reply:
                pass
        async with web.post("/v1/guests/web1/rpc", json=PING, ssl=client(certificates, "alice")) as reply:
            assert reply.status == 200
    await gateway.stop()


@needs_openssl
@pytest.mark.parametrize(
    ("certificate", "key", "ca", "place"),
    [
        ("missing", "host.key", None, "tls.certificate"),
        ("host.crt", "alice.key", None, "tls.certificate"),
        ("host.key", "host.key", None, "tls.certificate"),
        ("host.crt", "host.key", "missing", "tls.client_ca"),
        ("host.crt", "host.key", "host.key", "tls.client_ca"),
    ],
)
def test_files_that_are_wrong(
    certificates: Path, certificate: str, key: str, ca: str | None, place: str
) -> None:
    with pytest.raises(BadConfig, match=f"cannot use {place}"):
        listen.context(TlsConfig(certificate=certificate, key=key, client_ca=ca), certificates, tokens=True)


@pytest.mark.parametrize(
    ("where", "refused"),
    [("127.0.0.1:0", False), ("[::1]:0", False), ("0.0.0.0:0", True), ("[::]:0", True)],
)
def test_without_tls_nobody_of_another_host_comes(where: str, refused: bool) -> None:
    with listen.bind(where) as sock:
        listen.check(where, sock, tls=True)
        if refused:
            with pytest.raises(BadConfig, match="is open to other hosts, which takes TLS"):
                listen.check(where, sock, tls=False)
        else:
            listen.check(where, sock, tls=False)


async def test_at_a_unix_socket(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    sock = listen.bind(str(path))
    listen.check(str(path), sock, tls=False)
    gateway = Gateway(Guests(host.run_dir), tokens())
    await gateway.start([sock])
    async with aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as web:
        async with web.get("/v1/guests", headers=bearer("viewer")) as reply:
            assert reply.status == 200
        async with web.get("/v1/guests") as reply:
            assert reply.status == 401
    await gateway.stop()


def test_an_address_in_use() -> None:
    with listen.bind("127.0.0.1:0") as sock:
        where = f"127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(HostError, match=f"cannot listen at {where}: Address already in use"):
            listen.bind(where)


def test_sockets_of_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        monkeypatch.setattr(listen, "FIRST", os.dup(sock.fileno()))
        for pid, there in (("", False), ("1", False), (str(os.getpid()), True)):
            monkeypatch.setenv("LISTEN_PID", pid)
            monkeypatch.setenv("LISTEN_FDS", "1")
            found = listen.inherited()
            assert list(found) == ([f"127.0.0.1:{port}"] if there else [])
        assert "LISTEN_FDS" not in os.environ, "a child has none of it"
        given = found[f"127.0.0.1:{port}"]
        assert not given.getblocking() and not given.get_inheritable()
        given.close()
