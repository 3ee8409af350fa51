"""xenstore paths as they change."""

from __future__ import annotations

from tests.client.conftest import Daemon
from xenpvd.client import Guest


async def test_a_watch_begins_with_its_path_also_after_a_lost_connection(
    guest: Guest, daemon: Daemon
) -> None:
    async with guest.watch("/tool") as watch:
        assert await anext(watch) == "/tool"
        await guest.xenstore_write(path="/tool/a", text="1")
        assert await anext(watch) == "/tool/a"
        daemon.cut()
        assert await anext(watch) == "/tool"
        await guest.xenstore_remove(path="/tool/a")
        assert await anext(watch) == "/tool/a"
