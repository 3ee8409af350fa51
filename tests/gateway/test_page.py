"""The gateway's pages in a real browser: in with a token, to a guest's console, and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.gateway.conftest import TOKENS, Host
from tests.rpc.test_page import CHROMIUM, Browser, browser
from xenpvd.gateway.server import Gateway

__all__ = ["browser"]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt install chromium"),
    pytest.mark.timeout(180),  # a browser's first start on a busy machine
]

TABLE = "document.getElementById('guests').innerText"
ENTER = """document.getElementById('token').value = {!r}; document.getElementById('enter').requestSubmit()"""


async def test_from_the_list_to_a_console_and_back(
    browser: Browser, gateway: tuple[Gateway, str], host: Host, service: FakeService
) -> None:
    service.console.echo = True
    service.console.print(b"web1 login: ")
    (host.run_dir / "web2").mkdir()
    (host.run_dir / "web2/rpc-ro.sock").write_text("")
    page = await browser.open(gateway[1] + "/")
    await page.until("document.getElementById('enter').hidden", "False")
    await page.value(ENTER.format("wrong"))
    await page.text("link", "who are you?")
    await page.value(ENTER.format(TOKENS["operator"]))
    await page.until(TABLE, "web1")
    await page.until(TABLE, "is no socket")
    await page.until("document.querySelector('.badge.running').textContent", "running")
    await page.text("role", "operator")
    assert TOKENS["operator"] not in str(
        await page.value("location.href + document.documentElement.innerHTML")
    )
    if folder := os.environ.get("XENPVD_PICTURES"):
        await page.picture(Path(folder) / "guests.png")
    await host.stop("web1")
    await page.until(f"String({TABLE}.includes('web1'))", "false")
    service = await host.start("web1")
    service.console.echo = True
    service.console.print(b"web1 login: ")
    await page.until(TABLE, "web1")

    await page.value("document.querySelector('a[href*=web1]').click()")
    await page.shows("web1 login:")
    await page.text("role", "read-write")
    await page.type("root")
    await page.shows("web1 login: root")
    assert "secret" not in str(await page.value("location.href"))
    if folder := os.environ.get("XENPVD_PICTURES"):
        await page.picture(Path(folder) / "gateway-console.png")
    await host.stop("web1")
    await page.text("link", "again in")
    service = await host.start("web1")
    service.console.print(b"another life\r\n")
    await page.shows("another life")

    await page.value("history.back()")
    await page.until(TABLE, "web1")
    await page.value("document.getElementById('leave').click()")
    await page.until("document.getElementById('enter').hidden", "False")
    assert await page.value("sessionStorage.length") == 0


async def test_a_viewer_in_a_browser(
    browser: Browser, gateway: tuple[Gateway, str], service: FakeService
) -> None:
    service.console.print(b"hello\r\n")
    page = await browser.open(gateway[1] + "/")
    await page.until("document.getElementById('enter').hidden", "False")
    await page.value(ENTER.format(TOKENS["viewer"]))
    await page.until(TABLE, "web1")
    await page.value("document.querySelector('a[href*=web1]').click()")
    await page.shows("hello")
    await page.text("role", "read-only")
    await page.value("document.getElementById('steal').click()")
    await page.text("link", "that takes operator")
