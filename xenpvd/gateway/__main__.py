"""The ``xenpvd-gateway`` command: all guests of this host, for other hosts. Exit status: 0, 1 failed,
2 usage, gateway.toml or a file that it names."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from xenpvd import __version__, logs, paths
from xenpvd.errors import BadConfig, XenpvdError
from xenpvd.gateway import config
from xenpvd.gateway.serving import Serving, Settings
from xenpvd.tasks import Tasks


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
    wrong = 2  # what the files say
    try:
        settings = Settings.read(file)
        wrong = 1
        logs.configure("auto", settings.config.log_level)
        asyncio.run(_run(file, run_dir or paths.run_dir(), settings))
    except XenpvdError as fault:
        print(f"xenpvd-gateway: {fault}", file=sys.stderr)
        sys.exit(2 if isinstance(fault, BadConfig) else wrong)


async def _run(file: Path, run_dir: Path, settings: Settings) -> None:
    serving = Serving(file, run_dir)
    stop, tasks, loop = asyncio.Event(), Tasks(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.spawn(serving.reload(), "reload"))
    try:
        await serving.take(settings)
        await stop.wait()
    finally:
        await tasks.cancel()
        await serving.stop()


if __name__ == "__main__":
    main()
