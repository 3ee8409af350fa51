"""gateway.toml and its files read anew while the gateway serves: who comes in then, and what stays."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from tests.gateway.conftest import Host
from tests.gateway.openssl import client, crl, needs_openssl
from xenpvd.errors import BadConfig, HostError
from xenpvd.gateway import revocation
from xenpvd.gateway.serving import Serving, Settings

CLIENT = '\n[[client]]\nname = "alice"\nrole = "operator"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """With one token, "one"."""
    (tmp_path / "tokens").touch(0o600)
    write_tokens(tmp_path, "one")
    file = tmp_path / "gateway.toml"
    file.write_text(f'tokens = "tokens"\nlisten = ["{tmp_path}/a.sock"]\n')
    return file


def write_tokens(folder: Path, *tokens: str) -> None:
    lines = (f"{hashlib.sha256(token.encode()).hexdigest()} viewer\n" for token in tokens)
    (folder / "tokens").write_text("".join(lines))


@pytest.fixture
async def serving(file: Path, host: Host) -> AsyncIterator[Serving]:
    serving = Serving(file, host.run_dir)
    await serving.take(Settings.read(file))
    yield serving
    await serving.stop()


def web(folder: Path, name: str = "a.sock") -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(folder / name)))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def status(web: aiohttp.ClientSession, token: str, **headers: str) -> int:
    async with web.get("/v1/guests", headers={**bearer(token), **headers}) as reply:
        return reply.status


async def test_tokens_names_and_the_level(serving: Serving, file: Path, tmp_path: Path) -> None:
    ours = {"Host": "xen.example.org", "Origin": "https://xen.example.org"}
    async with web(tmp_path) as one:
        assert [await status(one, token) for token in ("one", "two")] == [200, 401]
        assert await status(one, "one", **ours) == 403
        write_tokens(tmp_path, "two")
        file.write_text(f'names = ["xen.example.org"]\nlog_level = "error"\n{file.read_text()}')
        await serving.reload()
        assert [await status(one, token) for token in ("one", "two")] == [401, 200]
        assert await status(one, "two", **ours) == 200
    assert logging.getLogger().level == logging.ERROR


async def test_open_connections_live_on(serving: Serving, tmp_path: Path) -> None:
    async with web(tmp_path) as one, one.ws_connect("/v1/guests/web1/rpc", headers=bearer("one")) as ws:
        assert (await ws.receive_json(timeout=5))["method"] == "daemon.hello"
        write_tokens(tmp_path, "two")
        await serving.reload()
        await ws.send_json({"jsonrpc": "2.0", "method": "daemon.ping", "id": 1})
        assert "result" in await ws.receive_json(timeout=5)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("gateway.toml", "listen = 7", "gateway.toml: listen: "),
        ("gateway.toml", 'tokens = "missing"', "missing: No such file"),
        ("tokens", "no digest", "line 1 is not SHA256"),
        ("gateway.toml", 'tokens = "tokens"\nlisten = ["0.0.0.0:0"]', "which takes TLS"),
        ("gateway.toml", 'tokens = "tokens"\nlisten = ["/b.sock/none"]', "cannot listen at /b.sock/none"),
        (
            "gateway.toml",
            'tokens = "tokens"\n[tls]\ncertificate = "a"\nkey = "b"',
            "tls.certificate, a with b",
        ),
    ],
)
async def test_a_fault_changes_nothing(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str, why: str
) -> None:
    (tmp_path / name).write_text(text)
    await serving.reload()
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert said.startswith("nothing is reloaded, all is as before: ") and why in said
    async with web(tmp_path) as one:
        assert await status(one, "one") == 200


async def test_a_start_with_that_fault(file: Path, host: Host) -> None:
    file.write_text('tokens = "missing"')
    with pytest.raises(HostError, match="cannot read"):
        Settings.read(file)
    file.write_text('tokens = "tokens"\nlisten = ["0.0.0.0:0"]')
    serving = Serving(file, host.run_dir)
    with pytest.raises(BadConfig, match="which takes TLS"):
        await serving.take(Settings.read(file))
    await serving.stop()


async def test_another_place(
    serving: Serving, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who connects to the one that stays is served all along."""
    caplog.set_level(logging.INFO)
    await serving.reload()
    assert "reloaded" in caplog.text and " are at " not in caplog.text, "they are where they were"
    both = f'tokens = "tokens"\nlisten = ["{tmp_path}/a.sock", "{tmp_path}/b.sock"]\n'
    file.write_text(both)
    await serving.reload()
    assert f" are at {tmp_path}/a.sock, {tmp_path}/b.sock" in caplog.text
    async with web(tmp_path) as a, web(tmp_path, "b.sock") as b:
        assert [await status(one, "one") for one in (a, b)] == [200, 200]
        file.write_text(both.replace(f'"{tmp_path}/a.sock", ', ""))
        await serving.reload()
        assert not (tmp_path / "a.sock").exists()
        assert [await status(one, "one") for one in (a, b)] == [200, 200], "a's connection is open"
    async with web(tmp_path) as late:
        with pytest.raises(aiohttp.ClientConnectorError):
            await status(late, "one")
    await serving.stop()
    assert not list(tmp_path.glob("*.sock"))


# ---- TLS


@pytest.fixture
def secured(certificates: Path, file: Path, tmp_path: Path) -> Path:
    """gateway.toml, at a port, with TLS, and clients' certificates of our CA."""
    for path in certificates.glob("*.*"):
        shutil.copy(path, tmp_path)
    text = file.read_text().replace(f"{tmp_path}/a.sock", "127.0.0.1:0")
    tls = '[tls]\ncertificate = "host.crt"\nkey = "host.key"\nclient_ca = "ours.crt"\n'
    file.write_text(text + tls + CLIENT)
    return file


def url(serving: Serving) -> str:
    (place,) = serving._places.values()
    return f"https://localhost:{place.getsockname()[1]}"


async def comes_in(url: str, context: ssl.SSLContext) -> bool:
    async with aiohttp.ClientSession(url) as web:
        try:
            async with web.get("/v1/guests", ssl=context) as reply:
                return reply.status == 200
        except aiohttp.ClientError:
            return False


@needs_openssl
async def test_a_new_certificate_of_the_host(secured: Path, host: Host, tmp_path: Path) -> None:
    serving = Serving(secured, host.run_dir)
    await serving.take(Settings.read(secured))
    ours, theirs = client(tmp_path, "alice"), ssl.create_default_context(cafile=f"{tmp_path}/other.crt")
    theirs.verify_flags &= ~ssl.VERIFY_X509_STRICT
    theirs.load_cert_chain(tmp_path / "alice.crt", tmp_path / "alice.key")
    assert [await comes_in(url(serving), context) for context in (ours, theirs)] == [True, False]
    async with aiohttp.ClientSession(url(serving)) as before:
        ws = await before.ws_connect("/v1/guests/web1/rpc", ssl=ours)
        assert (await ws.receive_json(timeout=5))["method"] == "daemon.hello"
        for end in ("crt", "key"):  # the host's is another CA's now, while clients' are as they were
            shutil.copy(tmp_path / f"false-alice.{end}", tmp_path / f"host.{end}")
        await serving.reload()
        assert [await comes_in(url(serving), context) for context in (ours, theirs)] == [False, True]
        await ws.send_json({"jsonrpc": "2.0", "method": "daemon.ping", "id": 1})
        assert "result" in await ws.receive_json(timeout=5)
        await ws.close()
    await serving.stop()


@needs_openssl
async def test_who_is_revoked(
    secured: Path, host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crl(tmp_path, "ours", "mallory")
    secured.write_text(secured.read_text().replace("[[client]]", 'client_crl = "ours.crl"\n[[client]]', 1))
    serving = Serving(secured, host.run_dir)
    await serving.take(Settings.read(secured))
    alice = client(tmp_path, "alice")
    assert await comes_in(url(serving), alice)
    async with aiohttp.ClientSession(url(serving)) as nobody:
        async with nobody.get("/v1/guests", ssl=client(tmp_path), headers=bearer("one")) as reply:
            assert reply.status == 200, "a token needs no certificate"
    crl(tmp_path, "ours", "alice")
    assert await comes_in(url(serving), alice), "nobody has told the gateway yet"
    await serving.reload()
    assert not await comes_in(url(serving), alice)
    (tmp_path / "ours.crl").write_text("damaged")
    await serving.reload()
    assert "there is no list (X509 CRL) in it" in caplog.text
    assert not await comes_in(url(serving), alice)
    crl(tmp_path, "ours")
    await serving.reload()
    assert await comes_in(url(serving), alice)
    await serving.stop()


@needs_openssl
async def test_a_list_that_is_out_of_date_is_told_of(
    secured: Path, host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crl(tmp_path, "ours", until="20260131120000Z")
    secured.write_text(secured.read_text().replace("[[client]]", 'client_crl = "ours.crl"\n[[client]]', 1))
    serving = Serving(secured, host.run_dir)
    await serving.take(Settings.read(secured))
    assert (
        "nobody of commonName=ours CA comes in by certificate: tls.client_crl, ours.crl: its list is out of "
        "date since 2026-01-31 12:00 UTC. Make a newer one, then reload."
    ) in caplog.text
    assert not await comes_in(url(serving), client(tmp_path, "alice"))
    async with aiohttp.ClientSession(url(serving)) as nobody:
        async with nobody.get("/v1/guests", ssl=client(tmp_path), headers=bearer("one")) as reply:
            assert reply.status == 200
    await serving.stop()


@needs_openssl
@pytest.mark.parametrize("fresh_first", [True, False])
async def test_an_old_list_beside_a_fresh_one_harms_nobody(
    secured: Path, host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture, fresh_first: bool
) -> None:
    lists = [crl(tmp_path, "ours"), crl(tmp_path, "ours", until="20260131120000Z")]
    (tmp_path / "ours.crl").write_text("".join(lists if fresh_first else lists[::-1]))
    secured.write_text(secured.read_text().replace("[[client]]", 'client_crl = "ours.crl"\n[[client]]', 1))
    serving = Serving(secured, host.run_dir)
    await serving.take(Settings.read(secured))
    assert "comes in by certificate" not in caplog.text
    assert await comes_in(url(serving), client(tmp_path, "alice"))
    await serving.stop()


@needs_openssl
async def test_a_list_that_runs_out_while_it_is_in_use(
    secured: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crl(tmp_path, "ours")
    secured.write_text(secured.read_text().replace("[[client]]", 'client_crl = "ours.crl"\n[[client]]', 1))
    told, settings, times = asyncio.Event(), Settings.read(secured), iter((0.0, None))
    (good,) = settings.revoked
    settings.revoked[:] = [good._replace(until=datetime.now(UTC) + timedelta(days=1))]
    monkeypatch.setattr(revocation, "ends", lambda known, now: next(times))
    warn, warned = Settings.warn, []

    def note(self: Settings) -> None:
        warned.append(warn(self))
        if len(warned) == 2:
            told.set()

    monkeypatch.setattr(Settings, "warn", note)
    serving = Serving(secured, host.run_dir)
    await serving.take(settings)
    async with asyncio.timeout(5):
        await told.wait()
    await serving.stop()


@needs_openssl
def test_a_list_that_openssl_cannot_read(secured: Path, tmp_path: Path) -> None:
    text = crl(tmp_path, "ours")
    (tmp_path / "ours.crl").write_text(text + "-----BEGIN X509 CRL-----\nAAAA")
    secured.write_text(secured.read_text().replace("[[client]]", 'client_crl = "ours.crl"\n[[client]]', 1))
    with pytest.raises(BadConfig, match=r"tls\.client_crl, ours\.crl: ") as caught:
        Settings.read(secured)
    assert "None" not in str(caught.value)


@needs_openssl
def test_a_list_with_a_certificate_in_it_makes_no_ca(secured: Path, tmp_path: Path) -> None:
    text = crl(tmp_path, "ours")
    (tmp_path / "ours.crl").write_text(text + (tmp_path / "other.crt").read_text())
    secured.write_text(secured.read_text().replace("[[client]]", 'client_crl = "ours.crl"\n[[client]]', 1))
    with pytest.raises(BadConfig, match=r"tls.client_crl, ours.crl: there is a certificate in it, too"):
        Settings.read(secured)
