"""``python -m xenpvd.backends.xenstore``: the store alone, with no VM, for tests, tools and comparison."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import click
import uvloop

from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.backends.xenstore.socket import XenstoreSocket
from xenpvd.errors import XenpvdError

#: one domain's sockets are its owner's alone: nobody asks who connects
MODE = 0o600


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", type=click.Path(path_type=Path), required=True, help="Serve domain 0 here.")
@click.option(
    "--domid",
    "guests",
    type=(click.IntRange(1, 0x7FEF), click.Path(path_type=Path)),
    multiple=True,
    metavar="N PATH",
    help="Serve whoever connects to PATH as guest N; can be repeated.",
)
@click.option("--verbose", "-v", is_flag=True, help="Print every request.")
def main(socket: Path, guests: tuple[tuple[int, Path], ...], verbose: bool) -> None:
    """Serve a xenstore that begins empty until SIGTERM or SIGINT. For Xen's tools: XENSTORED_PATH=PATH."""
    places = [socket, *(place for _, place in guests)]
    if len({place.absolute() for place in places}) < len(places) or len(dict(guests)) < len(guests):
        raise click.UsageError("each domain has one socket, and each socket one domain.")
    if not all(place.name for place in places):
        raise click.UsageError("a socket needs a name.")
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(socket, dict(guests), verbose))
    except XenpvdError as fault:
        sys.exit(f"xenstore: {fault}")


async def _serve(path: Path, guests: dict[int, Path], verbose: bool) -> None:
    over = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, over.set)
    store = Xenstore(lambda name, **data: logging.info("%s %s", name, data))
    if verbose:
        store.trace()
    sockets = [XenstoreSocket(store, path, mode=MODE)]
    for domid, place in guests.items():
        store.introduce(domid)
        sockets.append(XenstoreSocket(store, place, domid, MODE))
    try:
        for each in sockets:
            await each.start()
        click.echo(f"xenstore serves {', '.join(map(str, (path, *guests.values())))}", err=True)
        await over.wait()
    finally:
        for each in sockets:
            await each.stop()


if __name__ == "__main__":
    main()
