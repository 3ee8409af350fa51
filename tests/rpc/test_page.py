"""The console's page in a real browser: two of them at one guest, that is rebooted meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.service import FakeService
from xenpvd.rpc.http import HttpServer
from xenpvd.tasks import Tasks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt install chromium"),
    pytest.mark.timeout(180),  # a browser's first start on a busy machine
]

#: what the terminal shows, line by line
SCREEN = """[...document.querySelectorAll(".xterm-rows > div")].map((row) => row.textContent).join("\\n")"""


class Browser:
    """One Chromium, spoken to by its DevTools protocol."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self._numbers = count(1)

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        await self._ws.send_json(message if session is None else {**message, "sessionId": session})
        while True:
            reply = await self._ws.receive_json(timeout=30)
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    async def open(self, url: str) -> Page:
        """In a profile of its own, as another person's browser."""
        context = await self.call("Target.createBrowserContext")
        target = await self.call("Target.createTarget", url="about:blank", **context)
        session = await self.call("Target.attachToTarget", flatten=True, **target)
        page = Page(self, session["sessionId"])
        await self.call("Page.navigate", page.session, url=url)
        return page


class Page:
    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    async def value(self, script: str) -> Any:
        result = await self.browser.call(
            "Runtime.evaluate", self.session, expression=script, returnByValue=True
        )
        return result["result"].get("value")

    async def until(self, script: str, expected: str) -> None:
        """Until the script's value contains it."""
        found = None
        try:
            async with asyncio.timeout(20):
                while expected not in (found := str(await self.value(script))):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{expected!r} has not come; there is {found!r}")

    async def shows(self, text: str) -> None:
        await self.until(SCREEN, text)

    async def text(self, id_: str, expected: str) -> None:
        await self.until(f"document.getElementById({id_!r}).textContent", expected)

    async def type(self, text: str) -> None:
        for letter in text:
            await self.browser.call("Input.dispatchKeyEvent", self.session, type="char", text=letter)

    async def picture(self, path: Path) -> None:
        found = await self.browser.call("Page.captureScreenshot", self.session)
        path.write_bytes(base64.b64decode(found["data"]))


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    profile = tempfile.mkdtemp(prefix="chromium-", dir=tmp_path)
    command = [
        CHROMIUM,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
    ]
    place = Path(profile) / "DevToolsActivePort"
    # not asyncio's: what it leaves open when a browser is killed is noise
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            async with asyncio.timeout(60):
                while not (place.exists() and place.read_text().count("\n")):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            port, path = place.read_text().splitlines()
            url = f"ws://127.0.0.1:{port}{path}"
            async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as ws:
                yield Browser(ws)
        finally:
            process.kill()


@pytest.fixture
async def url(service: FakeService, tmp_path: Path) -> AsyncIterator[str]:
    """http.sock by a port of this machine, as ``ssh -L`` gives it."""
    path, tasks = tmp_path / "http.sock", Tasks()
    writers: list[asyncio.StreamWriter] = []
    door = HttpServer(service, path)
    await door.start()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(path)
        writers.extend((writer, there[1]))
        tasks.spawn(copy(reader, there[1]), "up")
        tasks.spawn(copy(there[0], writer), "down")

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    server.close()
    await door.stop()
    await tasks.cancel()
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_two_browsers_at_one_guest(browser: Browser, url: str, service: FakeService) -> None:
    service.console.echo = True
    service.console.print(b"Debian GNU/Linux 12 web1 hvc0\r\n\r\nweb1 login: ")
    one = await browser.open(url)
    await one.shows("web1 login:")
    two = await browser.open(url)
    await two.shows("web1 login:")
    await one.text("role", "read-write")
    await two.text("role", "read-only")
    for page in (one, two):
        await page.text("state", "running")
        await page.text("link", "connected")

    await two.type("nobody")
    await one.type("root")
    for page in (one, two):
        await page.shows("web1 login: root")
    assert service.console.typed == b"root"

    service.events.publish("guest.state", from_="running", to="stopped", reason="reboot")
    service.console.opened()
    service.console.print(b"\r\n[    0.000000] Linux version 6.1\r\n")
    service.events.publish("guest.state", from_="stopped", to="running", reason=None)
    for page in (one, two):
        await page.shows("Linux version 6.1")
        screen = await page.value(SCREEN)
        assert screen.index("root") < screen.index("--- boot 1 ---") < screen.index("Linux version")
        await page.text("state", "running")

    await two.value("document.getElementById('steal').click()")
    await one.text("role", "read-only")
    await two.text("role", "read-write")
    await two.type("uname")
    await service.console.wait_typed(b"uname")
    await one.shows("uname")
    if folder := os.environ.get("XENPVD_PICTURES"):
        await one.picture(Path(folder) / "read-only.png")
        await two.picture(Path(folder) / "read-write.png")


async def test_a_lost_connection_is_taken_up_where_it_was(
    browser: Browser, url: str, service: FakeService
) -> None:
    service.console.print(b"first\r\n")
    page = await browser.open(url)
    await page.shows("first")
    service.console.detach(service.console.viewers[0], "too slow")
    await page.text("link", "connection lost")
    service.console.print(b"meanwhile\r\n")
    await page.shows("meanwhile")
    service.console.print(b"after\r\n")
    await page.shows("after")
    screen = await page.value(SCREEN)
    assert [screen.count(word) for word in ("first", "too slow", "meanwhile", "after")] == [
        1,
        1,
        1,
        1,
    ]


async def test_who_was_ended_comes_back_when_asked_only(
    browser: Browser, url: str, service: FakeService
) -> None:
    page = await browser.open(url)
    await page.text("role", "read-write")
    service.consoles.kick(service.console.viewers[0].number, "the boss")
    await page.text("link", "ended by the boss")
    await page.until("document.getElementById('back').hidden", "False")
    assert not service.console.viewers
    await page.value("document.getElementById('back').click()")
    await page.text("link", "connected")
    assert len(service.console.viewers) == 1


async def test_a_paste_of_any_length(browser: Browser, url: str, service: FakeService) -> None:
    page = await browser.open(url)
    await page.text("role", "read-write")
    await browser.call("Input.insertText", page.session, text="x" * 200_000 + "!")
    await service.console.wait_typed(b"!")
    assert len(service.console.typed) == 200_001


async def test_only_what_is_asked_now_is_answered(browser: Browser, url: str, service: FakeService) -> None:
    """A terminal answers to ESC [ 5 n; the guest that asked before this one came expects nothing."""
    service.console.print(b"old \x1b[5n question\r\n")
    page = await browser.open(url)
    await page.shows("old  question")
    service.console.print(b"new \x1b[5n question\r\n")
    await service.console.wait_typed(b"\x1b[0n")
    assert service.console.typed == b"\x1b[0n"
