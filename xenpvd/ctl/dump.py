"""dump: what a developer wants to see of a guest that misbehaves."""

from __future__ import annotations

from pathlib import Path

import click

from xenpvd.ctl import job
from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.output import emit, json_option, size
from xenpvd.ctl.rundir import RunDir


@click.command()
@guest_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A tar.gz that is not there yet. Default: in a folder of the daemon's.",
)
@click.option("--memory", is_flag=True, help="The guest's memory as well, for gdb, in a .core beside it.")
@json_option
@click.pass_obj
def dump(place: RunDir, name: str, output: Path | None, memory: bool) -> None:
    """Write what a developer wants to see of a guest into a file.

    Its state, definition, consoles, xenstore, events and registers, and those of its daemon. The daemon
    writes it, with its own rights. Read it before you send it: what the guest printed is in it. ^C gives the
    dump up.
    """
    file = str(output.absolute()) if output else None
    with place.connect(name) as client:
        begun = client.call("guest.dump", {"file": file, "memory": memory})
        done = job.follow(client, begun["job"])["result"]
    emit(done, _lines(done))
    if (here := _unseen(Path(done["file"]))) is not None:
        click.echo(f"xenpvctl: {here}", err=True)


def _lines(done: dict[str, object]) -> list[str]:
    lines = [f"{done['file']}  {size(int(str(done['size'])))}"]
    if done["core"]:
        lines.append(f"{done['core']}  {size(int(str(done['core_size'])))}")
    if done["live"]:
        lines.append("the guest ran on while its memory was written; pause it for one of a single moment")
    return lines


def _unseen(file: Path) -> str | None:
    """Why the daemon's file is not the caller's to read."""
    try:
        file.open("rb").close()
    except FileNotFoundError:
        folder = Path(*file.parts[:2])
        return f"{file} is not seen from here: the daemon's service has a {folder} of its own."
    except OSError:
        return f"{file} is readable for the daemon's user and root only."
    return None
