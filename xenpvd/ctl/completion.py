"""Completion in shells: the script, and what can stand where a guest, a disk or a console is named.

The daemon is asked only when TAB is pressed, and not for long.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from xenpvd import paths
from xenpvd.ctl.client import NoAnswer, RpcFault
from xenpvd.ctl.output import emit, json_option
from xenpvd.ctl.rundir import NoGuest, RunDir

#: A shell shall not hang with a daemon that does.
ANSWER_TIMEOUT = 1.0

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def guests(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those that have a socket."""
    return _fitting(_place(ctx).names(), incomplete)


def definitions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those that ``start`` finds a definition of; else files."""
    return [CompletionItem(incomplete, type="file"), *_fitting(_place(ctx).definitions(), incomplete)]


def _things(method: str, key: str, *help_keys: str) -> Complete:
    """The values of ``key`` in what the guest's daemon answers to ``method``, explained by others."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # behind an option without its value click leaves the arguments as they came
        name = ctx.params.get("name") or next(iter(ctx.args), None)
        if name is None:
            return []
        try:
            with _place(ctx).connect(name, ANSWER_TIMEOUT) as client:
                found = client.call(method, timeout=ANSWER_TIMEOUT)
        except (NoGuest, NoAnswer, RpcFault, PermissionError):
            return []
        return [
            CompletionItem(str(each[key]), help=", ".join(str(each[word]) for word in help_keys) or None)
            for each in found
            if str(each[key]).startswith(incomplete)
        ]

    return complete


drives = _things("drive.list", "vdev", "target")
consoles = _things("console.list", "console")
viewers = _things("console.viewers", "viewer", "console", "mode", "who")

guest_argument = click.argument("name", shell_complete=guests)
drive_argument = click.argument("vdev", shell_complete=drives)


def _place(ctx: click.Context) -> RunDir:
    """The options of the command were parsed, but it was not run."""
    return RunDir(ctx.find_root().params.get("run_dir") or paths.run_dir())


def _fitting(names: list[str], incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(name)
        for name in names
        if name.startswith(incomplete) and paths.NAME.fullmatch(name)
    ]  # fmt: skip


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete xenpvctl's verbs, guests, disks and consoles.

    In .bashrc: source <(xenpvctl completion bash); zsh alike. For fish it goes to
    ~/.config/fish/completions/xenpvctl.fish.
    """
    program = "xenpvctl"
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, program, f"_{program.upper()}_COMPLETE").source()
    emit({"shell": shell, "script": script}, script.rstrip("\n"))
