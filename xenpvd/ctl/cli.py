"""The ``xenpvctl`` command."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from xenpvd import paths
from xenpvd.ctl import (
    boot,
    channel,
    completion,
    consoles,
    daemon,
    descriptor,
    drive,
    dump,
    guest,
    import_xl,
    job,
    look,
    machine,
    rundir,
    stats,
    top,
    units,
    xen,
    xenstore,
)
from xenpvd.ctl.output import Verbs, json_option


class Xenpvctl(Verbs):
    """Takes xl's word as well where it has another, and ``--run-dir`` behind the verb, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = iter(args)
        first, rest = list[str](), list[str]()
        for word in words:
            if word == "--run-dir":
                first += [word, *islice(words, 1)]
            elif word.startswith("--run-dir="):
                first.append(word)
            else:
                rest.append(word)
            if word == "--":
                break
        return super().parse_args(ctx, [*first, *rest, *words])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, {"unpause": "resume"}.get(cmd_name, cmd_name))


@click.group(
    cls=Xenpvctl,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 ok, 1 failed, 2 usage, 3 no such guest, 4 timeout, 130 interrupted.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="XENPVD_RUN_DIR",
    help="Where guests' sockets are; default /run/xenpvd, or $XDG_RUNTIME_DIR/xenpvd.",
)
@json_option
@click.version_option(package_name="xenpvd", message="%(version)s")
@click.pass_context
def cli(ctx: click.Context, run_dir: Path | None) -> None:
    """Run Xen PV guests on KVM, and look after them."""
    ctx.obj = rundir.RunDir(run_dir or paths.run_dir())


for verb in (
    boot.run,
    boot.start,
    guest.list_,
    guest.status,
    stats.stats,
    top.top,
    consoles.console,
    drive.drive,
    descriptor.fd,
    channel.channel,
    machine.vcpu,
    machine.memory,
    guest.pause,
    guest.resume,
    guest.shutdown,
    guest.reboot,
    guest.reset,
    guest.destroy,
    guest.sysrq,
    xenstore.xenstore_ls,
    xenstore.xenstore_read,
    xenstore.xenstore_write,
    xenstore.xenstore_rm,
    xenstore.xenstore_watch,
    xenstore.xenstore_history,
    xenstore.xenstore_quota,
    xen.evtchn,
    xen.grant,
    xen.hypercalls,
    look.events,
    job.job,
    dump.dump,
    daemon.reload,
    daemon.quit_,
    daemon.daemon_log,
    daemon.log_level,
    look.call,
    boot.check,
    boot.doctor,
    import_xl.import_xl,
    units.install_units,
    consoles.log,
    consoles.viewers,
    consoles.kick,
    completion.completion,
):
    cli.add_command(verb)


def main() -> None:
    cli(prog_name="xenpvctl")


if __name__ == "__main__":
    main()
