"""xenstore-ls, -read, -write, -rm, -watch, -history, -quota: a guest's store, as domain 0 sees it."""

from __future__ import annotations

import base64
import json
import re
import sys
from itertools import islice
from typing import Any

import click

from xenpvd.ctl.completion import guest_argument
from xenpvd.ctl.options import lines_option
from xenpvd.ctl.output import emit, json_option, moment, plain, table
from xenpvd.ctl.rundir import RunDir


@click.command("xenstore-ls")
@guest_argument
@click.argument("path", default="/")
@click.option("-f", "--full", is_flag=True, help="Full paths, no indentation.")
@click.option("-p", "--perms", is_flag=True, help="Permissions as well.")
@click.option("--depth", default=64, help="Levels below PATH.")
@json_option
@click.pass_obj
def xenstore_ls(place: RunDir, name: str, path: str, full: bool, perms: bool, depth: int) -> None:
    """A guest's xenstore, or the branch at PATH."""
    with place.connect(name) as client:
        nodes = client.call("xenstore.tree", {"path": path, "depth": depth})
    lines = []
    base = path.rstrip("/").count("/")
    for node in nodes:
        below = node["path"].rstrip("/").count("/") - base
        if not below:
            continue
        label = node["path"] if full else " " * (below - 1) + node["path"].rpartition("/")[2]
        value = plain(json.dumps(node["value"], ensure_ascii=False))
        lines.append(f"{plain(label)} = {value}" + (f"  ({','.join(node['perms'])})" if perms else ""))
    emit(nodes, lines)


@click.command("xenstore-read")
@guest_argument
@click.argument("path")
@json_option
@click.pass_obj
def xenstore_read(place: RunDir, name: str, path: str) -> None:
    """The value of a node in a guest's xenstore."""
    with place.connect(name) as client:
        told = client.call("xenstore.read", {"path": path})
    text = told["text"]
    emit(told, plain(text) if text is not None else repr(base64.b64decode(told["base64"]))[2:-1])


@click.command("xenstore-write")
@guest_argument
@click.argument("path")
@click.argument("value")
@json_option
@click.pass_obj
def xenstore_write(place: RunDir, name: str, path: str, value: str) -> None:
    """Set the value of a node in a guest's xenstore. The guest's drivers believe what is written there."""
    with place.connect(name) as client:
        told = client.call("xenstore.write", {"path": path, "text": value})
    emit(told, [])


@click.command("xenstore-rm")
@guest_argument
@click.argument("path")
@json_option
@click.pass_obj
def xenstore_rm(place: RunDir, name: str, path: str) -> None:
    """Remove a node, and what is below it, from a guest's xenstore."""
    with place.connect(name) as client:
        client.call("xenstore.remove", {"path": path})
    emit({"removed": path}, [])


@click.command("xenstore-watch")
@guest_argument
@click.argument("paths", nargs=-1, required=True)
@lines_option(None, None, "End after N lines.")
@json_option
@click.pass_obj
def xenstore_watch(place: RunDir, name: str, paths: tuple[str, ...], lines: int | None) -> None:
    """Print what changes at PATHS in a guest's xenstore, and below them.

    As with Xen's tool, each of PATHS comes once at the beginning, and is counted.
    """
    with place.connect(name) as client:
        for path in paths:
            client.call("xenstore.watch", {"path": path})
        changes = (params for method, params in client.notifications() if method == "xenstore.changed")
        for change in islice(changes, lines):
            emit(change, plain(change["path"]))
            sys.stdout.flush()


@click.command("xenstore-history")
@guest_argument
@click.argument("match", default="")
@lines_option(50, 1024, "The newest N.")
@json_option
@click.pass_obj
def xenstore_history(place: RunDir, name: str, match: str, lines: int) -> None:
    """Who has asked what of a guest's xenstore, and what came of it.

    All of it, or what names MATCH (a path, a value, or a part of one).
    """
    with place.connect(name) as client:
        told = client.call("xenstore.history", {"match": match, "max": lines})
    emit(told, map(_operation, told))


def _operation(operation: dict[str, Any]) -> str:
    who = f"d{operation['domid']} {operation['who']}" + (f" tx {operation['tx']}" if operation["tx"] else "")
    words = " ".join((operation["op"], *operation["arguments"]))
    return plain(f"{moment(operation['time'])} {who}: {words} -> {operation['result']}")


@click.command("xenstore-quota")
@guest_argument
@click.argument("limits", nargs=-1, metavar="[QUOTA=LIMIT...]")
@json_option
@click.pass_obj
def xenstore_quota(place: RunDir, name: str, limits: tuple[str, ...]) -> None:
    """What a guest may take of its xenstore, and takes; 0 is no limit.

    A LIMIT that is set holds at once, until the daemon ends.
    """
    wanted = dict(_limit(each) for each in limits)
    with place.connect(name) as client:
        for quota, limit in wanted.items():
            client.call("xenstore.set_quota", {"name": quota, "limit": limit})
        told = client.call("xenstore.quotas")
    rows = [(row["name"], "-" if row["used"] is None else row["used"], row["limit"]) for row in told]
    emit(told, table(("QUOTA", "USED", "LIMIT"), rows, right=("USED", "LIMIT")))


def _limit(text: str) -> tuple[str, int]:
    quota, _, limit = text.partition("=")
    if not quota or not re.fullmatch("[0-9]{1,10}", limit):
        raise click.UsageError(f"{text}: QUOTA=LIMIT is wanted, as nodes=2000.")
    return quota, int(limit)
