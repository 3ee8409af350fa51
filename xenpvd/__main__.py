"""The ``xenpvd`` command: the daemon in the foreground. Exit status: 0, 1 failed, 2 usage or definition,
3 the name is in use."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import click

from xenpvd import __version__, config, inherited, logs, paths
from xenpvd.daemon import Daemon
from xenpvd.errors import BadConfig, Busy, XenpvdError


def _loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def _take_all_files() -> None:
    """As many as may be: all sockets together can have more clients than the usual 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", type=click.Path(path_type=Path), help="Guest definition (TOML) to run.")
@click.option("--name", help="The guest's name; default: the definition's, or its file's.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="XENPVD_RUN_DIR",
    help="Where sockets go.",
)
@click.option("--start/--no-start", default=True, help="Boot the guest at once, or wait for guest.start.")
@click.option("--stop-timeout", default=60.0, show_default=True, help="Seconds a guest has to shut down.")
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm-xen", "kvm"]),
    help="Run every guest so, whatever it says itself.",
)
@click.option(
    "--fd",
    "descriptors",
    multiple=True,
    metavar="NAME=N",
    help="Descriptor N is open for us: an image that a disk names fd:NAME. Can be repeated.",
)
@click.option("--http", is_flag=True, help="Serve HTTP on http.sock, beside rpc.sock.")
@click.option("--qmp", is_flag=True, help="Serve QEMU's QMP on qmp.sock, beside rpc.sock.")
@click.option(
    "--loop",
    type=click.Choice(["uvloop", "asyncio"]),
    default="uvloop",
    show_default=True,
    help="The event loop.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much is written to stderr; xenpvctl log-level changes it.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json", "journal"]),
    default="auto",
    show_default=True,
    help="How; auto is journal where stderr is systemd's, else text.",
)
@click.version_option(__version__, message="%(version)s")
def main(
    file: Path | None,
    name: str | None,
    run_dir: Path | None,
    start: bool,
    stop_timeout: float,
    accel: str | None,
    descriptors: tuple[str, ...],
    http: bool,
    qmp: bool,
    loop: str,
    log_level: str,
    log_format: Literal["auto", "text", "json", "journal"],
) -> None:
    """Run one Xen PV guest on KVM, or, without --config, wait for guest.start on the RPC socket."""
    written = logs.configure(log_format, log_level)
    _take_all_files()
    broken = 2  # what is wrong with the definition
    try:
        given = [*inherited.from_systemd(os.environ), *inherited.from_options(descriptors)]
        definition = config.load(file) if file is not None else None
        broken = 1
        name = name or (definition.name if definition else "guest")
        if not paths.NAME.fullmatch(name):
            raise BadConfig(f"cannot call a guest {name!r}: it takes a-z, 0-9, '.', '_', '-', 63 at most.")
        with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
            where = run_dir or paths.run_dir()
            daemon = partial(Daemon, name, where, definition, stop_timeout, http, accel, qmp, file, given)
            runner.run(_run(daemon, start))
    except XenpvdError as fault:
        if written == "text":
            print(f"xenpvd: {fault}", file=sys.stderr)
        else:
            logging.getLogger("xenpvd").critical("%s", fault)
        sys.exit(2 if isinstance(fault, BadConfig) else 3 if isinstance(fault, Busy) else broken)


async def _run(daemon: Callable[[], Daemon], start: bool) -> None:
    made = daemon()  # in the loop, which its parts belong to
    gc.freeze()  # what is here by now stays: looking through it again and again takes tens of ms each time
    await made.run(start=start)


if __name__ == "__main__":
    main()
