"""list, status, and the verbs of a guest's life."""

from __future__ import annotations

from typing import Any

import click

from xenpvd.ctl.client import NoAnswer, RpcFault
from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.definitions import defined
from xenpvd.ctl.options import apart
from xenpvd.ctl.output import duration, emit, json_option, size, table
from xenpvd.ctl.rundir import NoGuest, RunDir
from xenpvd.ctl.waiting import timeout_option, told

#: One daemon that hangs must not hide the others.
LIST_TIMEOUT = 2.0


@click.command("list")
@click.option(
    "-a", "--all", "all_", is_flag=True, help="Those that have a definition, but no daemon, as well."
)
@json_option
@click.pass_obj
def list_(place: RunDir, all_: bool) -> None:
    """The guests of this host.

    A dead one's daemon was killed; one that is off (see --all) has none: FILE is what it would be started
    from, whose name may be another one than its own.
    """
    names = place.names()
    guests = [_glance(place, name) for name in names]
    if all_:
        off = ((name, file) for name, file in defined(place) if name not in names)
        guests += [{"name": name, "state": "off", "drives": [], "file": str(file)} for name, file in off]
    rows = [
        (
            guest["name"],
            guest["state"],
            guest.get("vcpus", "-"),
            guest.get("memory_mib", "-"),
            duration(guest.get("uptime")),
            " ".join(guest["drives"]) or "-",
            *((guest.get("file", "-"),) if all_ else ()),
        )
        for guest in guests
    ]
    head = ("NAME", "STATE", "VCPUS", "MEM", "UPTIME", "DRIVES", *(("FILE",) if all_ else ()))
    emit(guests, table(head, rows))
    if unseen := place.unseen():
        click.echo(f"xenpvctl: {unseen}", err=True)


def _glance(place: RunDir, name: str) -> dict[str, Any]:
    try:
        with place.connect(name, LIST_TIMEOUT) as client:
            status = client.call("guest.status", timeout=LIST_TIMEOUT)
            drives = client.call("drive.list", timeout=LIST_TIMEOUT)
    except NoGuest:
        return {"name": name, "state": "dead", "drives": []}
    except PermissionError:
        return {"name": name, "state": "no permission", "drives": []}
    except (NoAnswer, RpcFault) as fault:
        refused = isinstance(fault, RpcFault) and fault.data.get("reason") == "PERMISSION"
        return {"name": name, "state": "no permission" if refused else "no answer", "drives": []}
    return {**status, "name": name, "drives": [drive["vdev"] for drive in drives]}


@click.command()
@guest_argument
@json_option
@click.pass_obj
def status(place: RunDir, name: str) -> None:
    """Where a guest is, and what it runs on."""
    with place.connect(name) as client:
        found = client.call("guest.status")
        drives = client.call("drive.list")
    emit({**found, "drives": drives}, _status_lines(found, drives))


def _status_lines(found: dict[str, Any], drives: list[dict[str, Any]]) -> list[str]:
    times = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in found["boot_times"].items())
    host = found["host"]
    rows = [
        ("name", found["name"]),
        ("type", found["type"]),
        ("state", found["state"] + (f" ({found['reason']})" if found["reason"] else "")),
        ("memory", f"{found['memory_mib']} MiB"),
        ("vcpus", found["vcpus"]),
        ("uptime", duration(found["uptime"])),
        ("boot", times or "-"),
        ("hypercalls", found["hypercalls"]),
        ("viewers", found.get("viewers", 0)),
        *(((key, f"{host[key]} ({host[key + '_why']})") for key in ("accel", "pages")) if host else ()),
        *((("shim", found["shim"]),) if found["shim"] else ()),
        *((drive["vdev"], drive_line(drive)) for drive in drives),
    ]  # fmt: skip
    return [f"{label + ':':<12}{value}" for label, value in rows]


def drive_line(drive: dict[str, Any]) -> str:
    state = drive["state"] if drive["state"] == drive["frontend_state"] else (
        f"{drive['state']} (the guest's end: {drive['frontend_state']})"
    )  # fmt: skip
    error = f": {drive['error']}" if drive["error"] else ""
    return f"{drive['target']}, {drive['access']}, {size(drive['size'])}, {state}{error}"


@click.command()
@guest_argument
@click.option("--reboot", is_flag=True, help="Boot it again.")
@click.option("--halt", is_flag=True, help="Halt, do not power off.")
@timeout_option(60.0)
@click.option("--destroy", is_flag=True, help="Destroy it when the time is up.")
@json_option
@apart("--reboot", "--halt")
@click.pass_obj
def shutdown(place: RunDir, name: str, reboot: bool, halt: bool, timeout: float, destroy: bool) -> None:
    """Ask a guest to shut itself down, and wait until it has."""
    mode = "reboot" if reboot else "halt" if halt else "poweroff"
    _shut_down(place, name, mode, timeout, destroy)


@click.command()
@guest_argument
@timeout_option(60.0)
@json_option
@click.pass_obj
def reboot(place: RunDir, name: str, timeout: float) -> None:
    """Ask a guest to reboot, and wait until it does. See reset."""
    _shut_down(place, name, "reboot", timeout, destroy=False)


def _shut_down(place: RunDir, name: str, mode: str, timeout: float, destroy: bool) -> None:
    params = {"mode": mode, "timeout": timeout, "then": "destroy" if destroy else "fail"}
    then = " It is destroyed when the time is up." if destroy else ""
    with (
        place.connect(name) as client,
        told(f"{name} is asked to go down, and may still do it; that cannot be taken back.{then}"),
    ):
        done = client.call("guest.shutdown", params)
    took = f" after {done['stopped']:.1f} s" if done["stopped"] is not None else ""
    how = " (it did not end by itself and was destroyed)" if done["destroyed"] else ""
    emit(done, f"{name} is {done['state']}{took}{how}")


@click.command()
@guest_argument
@json_option
@click.pass_obj
def destroy(place: RunDir, name: str) -> None:
    """End a guest at once, as by pulling the plug."""
    _change(place, name, "guest.destroy")


@click.command()
@guest_argument
@json_option
@click.pass_obj
def reset(place: RunDir, name: str) -> None:
    """End a guest at once and boot it again, as by a reset button."""
    _change(place, name, "guest.reset")


@click.command()
@guest_argument
@json_option
@click.pass_obj
def pause(place: RunDir, name: str) -> None:
    """Stop a guest's vCPUs where they are, until resume."""
    _change(place, name, "guest.pause")


@click.command()
@guest_argument
@json_option
@click.pass_obj
def resume(place: RunDir, name: str) -> None:
    """Let a paused guest run on (also: unpause)."""
    _change(place, name, "guest.resume")


def _change(place: RunDir, name: str, method: str) -> None:
    with place.connect(name) as client:
        done = client.call(method)
    emit(done, f"{name} is {done['state']}")


@click.command()
@guest_argument
@click.argument("key")
@timeout_option(10.0)
@json_option
@click.pass_obj
def sysrq(place: RunDir, name: str, key: str, timeout: float) -> None:
    """Press a SysRq key of the guest.

    As s (sync), t (list tasks), h (list the keys); what it has to say comes on its console. That the guest
    took the key does not mean that it did it: its kernel.sysrq (sysctl) says which keys it obeys.
    """
    with place.connect(name) as client:
        done = client.call("guest.sysrq", {"key": key, "timeout": timeout})
    emit(done, f"{name} took sysrq {done['key']}")
