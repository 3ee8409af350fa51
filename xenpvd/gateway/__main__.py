"""The ``xenpvd-gateway`` command: all guests of this host, for other hosts. Exit status: 0, 1 failed, 2 usage
or gateway.toml."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import click

from xenpvd import __version__, logs, paths
from xenpvd.errors import BadConfig, XenpvdError
from xenpvd.gateway import config, listen
from xenpvd.gateway.access import Certificates, Tokens
from xenpvd.gateway.config import GatewayConfig
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.server import Gateway

log = logging.getLogger("xenpvd.gateway")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=config.DEFAULT,
    show_default=True,
    help="Where to listen, and who may do what (TOML).",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="XENPVD_RUN_DIR",
    help="Where the guests' sockets are.",
)
@click.version_option(__version__, message="%(version)s")
def main(file: Path, run_dir: Path | None) -> None:
    """Let other hosts, and browsers, see and steer the guests of this one."""
    try:
        settings = config.load(file)
        logs.configure("auto", settings.log_level)
        asyncio.run(_run(settings, file.absolute().parent, run_dir or paths.run_dir()))
    except XenpvdError as fault:
        print(f"xenpvd-gateway: {fault}", file=sys.stderr)
        sys.exit(2 if isinstance(fault, BadConfig) else 1)


async def _run(settings: GatewayConfig, folder: Path, run_dir: Path) -> None:
    tokens = Tokens.load(folder / settings.tokens) if settings.tokens is not None else Tokens()
    tls = None
    if settings.tls is not None:
        tls = listen.context(settings.tls, folder, settings.tokens is not None)
    authorities = [] if tls is None else [one["subject"] for one in tls.get_ca_certs()]
    people = Certificates(settings.client, authorities)
    gateway = Gateway(Guests(run_dir), tokens, people, settings.names)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    given = listen.inherited()
    places = dict(given)
    try:
        for where in () if given else settings.listen:
            places[where] = listen.bind(where)
        for where, place in places.items():
            listen.check(where, place, tls is not None)
        await gateway.start(list(places.values()), tls)
        log.info("the guests of %s are at %s", run_dir, ", ".join(places))
        await stop.wait()
    finally:
        await gateway.stop()
        for where, place in places.items():
            place.close()
            if where.startswith("/") and not given:
                Path(where).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
