"""Completion in shells: the script, and what can stand where a guest, a disk or a console is named.

The daemon is asked only when TAB is pressed, and not for long.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import suppress

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from xenpvd import paths
from xenpvd.ctl.client import NoAnswer, RpcFault
from xenpvd.ctl.output import emit, json_option
from xenpvd.ctl.rundir import NoGuest, RunDir

#: A shell shall not hang with a daemon that does.
ANSWER_TIMEOUT = 1.0

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def guests(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those that have a socket."""
    with suppress(PermissionError):
        return _fitting(_place(ctx).names(), incomplete)
    return []


def definitions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those that ``start`` finds a definition of; else files."""
    names: list[str] = []
    with suppress(PermissionError):
        names = _place(ctx).definitions()
    return [*files(ctx, param, incomplete), *_fitting(names, incomplete)]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For what may be a file's name, and more."""
    return [CompletionItem(incomplete, type="file")]


def words(*known: str) -> Complete:
    """Some that are good, though others are, too."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in known if word.startswith(incomplete)]

    return complete


def _things(method: str, key: str, *help_keys: str, of: str = "", but: Container[str] = ()) -> Complete:
    """The values of ``key`` in what the guest's daemon answers to ``method``, or in ``of`` it; explained by
    others."""

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
            CompletionItem(value, help=", ".join(str(each[word]) for word in help_keys) or None)
            for each in (found[of] if of else found)
            if (value := str(each[key])).startswith(incomplete) and value not in but
        ]

    return complete


drives = _things("drive.list", "vdev", "target")
descriptors = _things("fd.list", "name", "kind")
consoles = _things("console.list", "console")
channels = _things("console.list", "console", but=("0", "xen"))
jobs = _things("job.list", "job", "kind", "state")
viewers = _things("console.viewers", "viewer", "console", "mode", "who")
ports = _things("evtchn.list", "port", "type")
methods = _things("rpc.discover", "name", "summary", of="methods")
events = _things("rpc.discover", "name", "summary", of="x-events")


def targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """An image's file; or fd:NAME of a descriptor that the daemon has, for who begins so: bash offers no
    files beside other words."""
    scheme, colon, begun = incomplete.partition(":")
    if scheme + ":" != paths.BY_DESCRIPTOR:
        return files(ctx, param, incomplete)
    held = [
        CompletionItem(paths.BY_DESCRIPTOR + item.value)  # older clicks confuse zsh by a ":" beside a help
        for item in descriptors(ctx, param, begun)
    ]
    return held if colon else [*files(ctx, param, incomplete), *held]


@add_completion_class
class _Bash(BashComplete):
    """To bash a ":" ends a word (COMP_WORDBREAKS): fd:NAME comes as three, and what is chosen takes the place
    of what is behind the last ":" only. Of a blank behind a ":" it does not tell; an empty word, or an
    option, is one of its own."""

    _kept = 0

    def get_completion_args(self) -> tuple[list[str], str]:
        args, last = super().get_completion_args()
        words: list[str] = []
        for word in (*args, last):
            goes_on = words and words[-1].endswith(":") and not word.startswith("-")
            if word and words and (goes_on or not word.strip(":")):
                words[-1] += word
            else:
                words.append(word)
        self._kept = len(words[-1]) - len(last if last.strip(":") else "")
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value[self._kept :]}"


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
