"""What a guest shows of itself, and one can wait for: a text on its console, a node in its xenstore."""

from __future__ import annotations

from xenpvd.backends.console.history import History
from xenpvd.backends.xenstore.server import Xenstore


async def shown(sign: str, history: History, since: int, xenstore: Xenstore, home: str) -> bool:
    """Wait for ``console:TEXT``, from offset ``since`` of the recording on, or for ``xenstore:PATH``, below
    ``home`` if it is relative. False if it cannot come any more."""
    kind, _, what = sign.partition(":")
    if kind == "console":
        return await history.find(what.encode(), since)
    path = what if what.startswith("/") else f"{home}/{what}"
    watch = xenstore.client.watch(path)
    try:
        async for _ in watch:  # the first one comes at once
            if xenstore.exists(path):
                return True
    finally:
        watch.close()
    return False
