"""start, run, check, doctor: bringing a guest up, and what keeps it from coming."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xenpvd.ctl.client import GUEST_STATE, INVALID_PARAMS, NoAnswer, RpcFault
from xenpvd.ctl.completion import definitions, files, words
from xenpvd.ctl.definitions import find, is_path, missing, read
from xenpvd.ctl.options import apart
from xenpvd.ctl.output import FAILED, TIMEOUT, USAGE, Failure, emit, failure_of, json_option
from xenpvd.ctl.rundir import NoGuest, RunDir
from xenpvd.ctl.waiting import timeout_option, told

if TYPE_CHECKING:
    from xenpvd.ctl.launch import Launched

END_TIMEOUT = 10.0

#: Guests in these states are started over the daemon that is there.
AT_REST = ("defined", "stopped", "crashed")


_accel_option = click.option(
    "--accel",
    type=click.Choice(["auto", "kvm-xen", "kvm"]),
    help="Use KVM's own Xen support, or do without it; default: what the definition says, else auto.",
)


#: What of a boot can be waited for, beside signs of the guest's own
PHASES = ("created", "shim", "kernel", "xenbus", "devices", "ready")
_SIGN = re.compile("console:.+|xenstore:.+", re.DOTALL)
WAITED = f"{', '.join(PHASES)}, console:TEXT or xenstore:PATH"


def _phase(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Looked at before anything is started."""
    if value not in PHASES and not _SIGN.fullmatch(value):
        raise click.BadParameter(f"{value!r} cannot be waited for. {WAITED} can be.")
    return value


@click.command()
@click.argument("guest", shell_complete=definitions)
@click.option(
    "--wait",
    "phase",
    callback=_phase,
    metavar="PHASE",
    default="shim",
    show_default=True,
    help=f"Come back when the boot is so far: {WAITED}.",
    shell_complete=words(*PHASES),
)
@timeout_option(60.0, "that")
@click.option("--paused", is_flag=True, help="Leave it before its first instruction, until: xenpvctl resume.")
@click.option("--http", is_flag=True, help="Serve http.sock as well: RPC by POST, a page with the console.")
@click.option("--qmp", is_flag=True, help="Serve qmp.sock as well, for programs that speak QEMU's QMP.")
@_accel_option
@json_option
@apart("--paused", "--wait")
@click.pass_obj
def start(
    place: RunDir,
    guest: str,
    phase: str,
    timeout: float,
    paused: bool,
    http: bool,
    qmp: bool,
    accel: str | None,
) -> None:
    """Start a guest in the background.

    GUEST is a TOML file or a name: that of NAME.toml in ~/.config/xenpvd (not for root) or in /etc/xenpvd, or
    else of a guest that was started from its file before.
    """
    file = find(place, guest)
    name, definition = read(file) if file is not None else (guest, _known(place, guest, accel))
    if accel and definition is not None:
        definition["accel"] = accel
    options = ["--accel", accel] if accel else []
    sockets = [kind for kind, wanted in (("http", http), ("qmp", qmp)) if wanted]
    options += [f"--{kind}" for kind in sockets]
    if paused:
        options.append("--no-start")
    begin = time.monotonic()
    with ExitStack() as stack:
        launched: Launched | None = None
        try:
            client = stack.enter_context(place.connect(name))
        except NoGuest:
            if file is None:
                raise
            launched = _launch(place, name, file, options, timeout)
            stack.callback(launched.close)
            client = stack.enter_context(place.connect(name))
        if launched is None:
            for kind in sockets:
                if not (place.path / name / f"{kind}.sock").exists():
                    already = f"the daemon of {name} runs already, without --{kind}. Destroy it first."
                    raise _in_state(already, client.call("guest.status"))
            found = client.call("guest.status")
            waits = found["state"] == "starting" and str(found["reason"]).startswith("restart in ")
            if found["state"] not in AT_REST and not waits:
                raise _in_state(f"{name} is {found['state']} already.", found)
        if launched is None or paused:
            try:
                status = client.call("guest.start", {"config": definition, "paused": paused})
            except RpcFault:
                if launched is not None:
                    launched.end(END_TIMEOUT)
                raise
        if file is not None:
            place.remember(name, file)
        if paused:  # it comes no further
            emit(status, f"{name} is {status['state']}")
            return
        left = max(0.0, timeout - (time.monotonic() - begin))
        try:
            with told(_boots_on(name)):
                status = client.call("guest.wait", {"for": phase, "timeout": left})
        except RpcFault as fault:
            raise _with_tails(fault) from None
        except NoAnswer:
            tail = launched.tail() if launched is not None else f"see {place.log(name)}"
            raise Failure(f"{name} ended while it booted:\n{tail}") from None
    seconds = status["boot_times"].get(phase)
    when = f": {phase} after {seconds:.2f} s" if seconds is not None else ""
    emit(status, f"{name} is {status['state']}{when}")


def _launch(place: RunDir, name: str, file: Path, options: list[str], timeout: float) -> Launched:
    from xenpvd.ctl.launch import Launched, NotReady

    try:
        with ExitStack() as undo:
            launched = undo.enter_context(closing(Launched(place, name, file, *options)))
            undo.enter_context(told(_boots_on(name)))
            try:
                launched.wait_ready(timeout)
            except NotReady as fault:
                if fault.status is not None:  # it has ended
                    place.tidy(name, launched.spare_log())
                raise
            undo.pop_all()
            return launched
    except NotReady as fault:
        raise Failure(str(fault), TIMEOUT if fault.status is None else _status(fault.status)) from None
    except OSError as fault:
        place.tidy(name)
        where = fault.filename or place.path
        raise Failure(f"cannot start {name}: {where}: {fault.strerror}.") from None


def _in_state(message: str, found: dict[str, Any]) -> Failure:
    """For programs, no start that was tried and failed."""
    data = {"state": found["state"], "allowed": list(AT_REST)}
    return Failure(message, code=GUEST_STATE, reason="GUEST_STATE", data=data)


def _boots_on(name: str) -> str:
    return f"{name} goes on with its boot. End it with: xenpvctl destroy {name}"


def _known(place: RunDir, guest: str, accel: str | None) -> dict[str, Any] | None:
    """What a daemon, whose definition is not where we look for one, starts again: its own if None."""
    if not os.path.lexists(place.socket(guest)):
        raise missing(place, guest, "start")
    with place.connect(guest) as client:
        return client.call("guest.config") if accel else None


def _status(daemon: int) -> int:
    return USAGE if daemon == 2 else FAILED


def _with_tails(fault: RpcFault) -> Failure:
    """The fault, with what the guest and Xen printed last if the daemon tells."""
    for key, title in (("console_tail", "the guest's console"), ("xen_tail", "Xen's log")):
        if tail := fault.data.get(key):
            fault.message += f"\n--- {title}, last:\n{str(tail).rstrip()}"
    return failure_of(fault)


@click.command()
@click.option("--kernel", required=True, type=click.Path(), help="A file, as it lies in /boot, or pvgrub.")
@click.option("--ramdisk", type=click.Path(), help="Its initrd.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="FILE[,VDEV][,ro]",
    shell_complete=files,
    help="A raw image or block device; may be repeated.",
)
@click.option(
    "--memory", type=click.IntRange(64, 1 << 20), default=512, show_default=True, metavar="MiB", help="RAM."
)
@click.option("--vcpus", type=click.IntRange(1, 32), default=1, show_default=True, help="Virtual CPUs.")
@click.option("--cmdline", help='The kernel\'s; default "console=hvc0", and "root=/dev/VDEV" with a disk.')
@click.option("--name", help="Default: one is made up.")
@click.option("-x", "--drop-changes", is_flag=True, help="Changes to the disks are dropped at the end.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["pv", "pvh"]),
    default="pv",
    show_default=True,
    help="pv: a PV kernel in Xen's shim; pvh: a kernel with a PVH entry, without it.",
)
@click.option("--shim", default="auto", show_default=True, shell_complete=files, help="The xen-shim file.")
@_accel_option
@json_option
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> None:
    """Run a guest for as long as you watch it.

    Its console is yours; ^] shuts it down, and a guest that powers off ends the command.
    """
    from xenpvd.ctl import quick

    ctx.exit(quick.run(ctx.obj, quick.Wanted(**options)))


@click.command()
@click.argument("guest", shell_complete=definitions)
@json_option
@click.pass_obj
def check(place: RunDir, guest: str) -> None:
    """Check a guest's definition, and that this host can run it.

    GUEST is a TOML file or a name, as for start. Needs no daemon and changes nothing. Exit status: 2
    if the file is wrong, 1 if this host cannot run it.
    """
    from xenpvd import check as host
    from xenpvd import config
    from xenpvd.errors import BadConfig

    file = find(place, guest)
    if file is None:
        raise missing(place, guest, "check")
    if is_path(guest):
        file = Path(guest)  # in messages as it was typed
    definition = None
    try:
        definition = config.load(file)
        found, status = host.problems(definition), FAILED
    except BadConfig as fault:
        found, status = fault.problems, USAGE
    if found:
        errors = [{"loc": loc, "msg": msg} for loc, msg in found]
        said = "\n".join(f"{file}: {loc}: {msg}" for loc, msg in found)
        raise Failure(said, status, code=INVALID_PARAMS, reason="VALIDATION", data={"errors": errors})
    assert definition is not None
    disks = ", ".join(f"{disk.vdev} {disk.target}" for disk in definition.disk) or "no disks"
    vcpus = f"{definition.vcpus} vCPU{'s' if definition.vcpus > 1 else ''}"
    summary = f"{definition.name}, {definition.memory} MiB, {vcpus}, {disks}"
    emit({"problems": []}, f"ok    {file}: {summary}")


@click.command()
@json_option
@click.pass_obj
def doctor(place: RunDir) -> None:
    """Can this host run guests?

    One line for each thing that it needs, with a cure if it fails.
    """
    from xenpvd.ctl import doctor as host

    findings = host.examine(place.path)
    emit([finding._asdict() for finding in findings], [str(finding) for finding in findings])
    if any(finding.verdict == "FAIL" for finding in findings):
        click.get_current_context().exit(FAILED)
