"""install-units: xenpvd under systemd."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import click

from xenpvd import paths
from xenpvd.ctl.output import Failure, emit, json_option

#: In the wheel, and in a checkout.
SOURCES = (Path(__file__).parents[1] / "systemd", Path(__file__).parents[2] / "systemd")
#: What the units in there call the daemon, the gateway and this command.
COMMANDS = re.compile(r"/usr/bin/(xenpvd\S*|xenpvctl)")
#: What a guest's unit sees nothing of (ProtectHome=, PrivateTmp=).
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))

SYSTEM = {
    "xenpvd@.service": "/etc/systemd/system",
    "xenpvd.target": "/etc/systemd/system",
    "xenpvd-gateway.service": "/etc/systemd/system",
    "xenpvd-gateway.socket": "/etc/systemd/system",
    "sysusers.d/xenpvd.conf": "/etc/sysusers.d",
}
NEXT = (
    "systemd-sysusers                       # the group xenpvd: its members may use the guests' sockets",
    "systemctl daemon-reload",
    "systemctl enable --now xenpvd@web1     # runs /etc/xenpvd/web1.toml",
)
#: For another system, which does not run
NEXT_ROOT = (
    "systemd-sysusers --root={root}     # the group xenpvd: its members may use the guests' sockets",
    "systemctl --root={root} enable xenpvd@web1     # will run its /etc/xenpvd/web1.toml",
)
NEXT_USER = (
    "systemctl --user daemon-reload",
    "systemctl --user enable --now xenpvd@web1     # runs {config}/xenpvd/web1.toml",
    "loginctl enable-linger                        # if your guests shall run while you are not logged in",
)


@click.command("install-units")
@click.option("--user", is_flag=True, help="For guests of your own, under your systemd --user.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default="/",
    help="Write below this folder, as for an image of another system.",
)
@json_option
def install_units(user: bool, root: Path) -> None:
    """Write the units that let systemd run guests.

    Says what it wrote, and what to do next. Done again, it brings them up to date; drop-ins stay.
    """
    daemon = _daemon()
    here = root.resolve() == Path("/")
    if not user and (why := _unusable(daemon)) is not None:
        if here:
            raise Failure(f"cannot run {daemon} as a service: {why}")
        click.echo(
            f"xenpvctl: {root} must have {daemon}; on this host it could be no service: {why}", err=True
        )
    config = paths.user_config()
    files = {"user/xenpvd@.service": f"{config}/systemd/user"} if user else SYSTEM
    written = []
    for name, folder in files.items():
        text = _source(name).read_text(encoding="utf-8")
        text = COMMANDS.sub(lambda found: _word(daemon.with_name(found[1])), text)
        target = root.absolute() / folder.lstrip("/") / Path(name).name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        except OSError as fault:
            cure = "Use sudo, or --user for guests of your own." if not user else "Check its folder."
            raise Failure(f"cannot write {target}: {fault.strerror}. {cure}") from None
        written.append(str(target))
    # systemctl --user has no --root
    head = "next, on the system that this is for:" if user and not here else "next:"
    words = {"config": config, "root": shlex.quote(str(root.absolute()))}
    steps = NEXT_USER if user else NEXT if here else NEXT_ROOT
    lines = [*(f"wrote {path}" for path in written), "", head]
    lines += [f"  {step.format(**words)}" for step in steps]
    commands = [step.split(" #")[0].rstrip().format(**words) for step in steps]
    emit({"written": written, "daemon": str(daemon), "next": commands}, lines)


def _source(name: str) -> Path:
    for folder in SOURCES:
        if (folder / name).exists():
            return folder / name
    raise Failure(f"cannot find {name}: it is not in {SOURCES[0]}. Install xenpvd again.")


def _daemon() -> Path:
    """The xenpvd that belongs to this xenpvctl. Raises :class:`Failure`."""
    here = Path(sys.argv[0]).absolute().parent
    found = [folder / "xenpvd" for folder in (here, Path(sys.executable).parent)]
    daemon = next((path for path in found if path.is_file() and os.access(path, os.X_OK)), None)
    if daemon is None:
        raise Failure(f"cannot find xenpvd: it is not in {here}. Install the wheel, and use its xenpvctl.")
    return daemon


def _unusable(daemon: Path) -> str | None:
    """Why a service's own user could not run ``daemon``, and what to do."""
    anew = (
        "Install xenpvd for all: /usr/bin/python3 -m venv /opt/xenpvd, then its wheel with "
        "/opt/xenpvd/bin/pip, and use /opt/xenpvd/bin/xenpvctl."
    )
    # a venv that is where it should be may still be one of a Python that is not, as uv's or pyenv's
    python = anew
    if sys.prefix != sys.base_prefix:
        python = f"Make its venv anew: /usr/bin/python3 -m venv --clear {sys.prefix}, and install it again."
    for path, cure in ((daemon, anew), (Path(__file__), anew), (Path(sys.executable), python)):
        for place in dict.fromkeys((path, path.resolve())):
            if why := _unreachable(place):
                return f"{why}. {cure}"
    return None


def _unreachable(path: Path) -> str | None:
    """Why a service's own user could not read ``path``."""
    for parent in (path, *path.parents):
        if parent in HIDDEN:
            return f"services see nothing of {parent}, and {path} is needed"
        if not parent.stat().st_mode & (0o001 if parent.is_dir() else 0o004):
            return f"only its owner can use {parent}"
    return None


def _word(path: Path) -> str:
    """``path`` as the first word of ExecStart= (systemd.syntax(7))."""
    text = str(path).replace("%", "%%")
    plain = not any(c.isspace() or c in "\"'\\" for c in text)
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
