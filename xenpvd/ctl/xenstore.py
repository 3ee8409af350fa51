"""xenstore-ls, -read, -write, -rm: a guest's store, as domain 0 sees it."""

from __future__ import annotations

import base64
import json

import click

from xenpvd.ctl.output import emit, json_option, plain
from xenpvd.ctl.rundir import RunDir


@click.command("xenstore-ls")
@click.argument("name")
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
@click.argument("name")
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
@click.argument("name")
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
@click.argument("name")
@click.argument("path")
@json_option
@click.pass_obj
def xenstore_rm(place: RunDir, name: str, path: str) -> None:
    """Remove a node, and what is below it, from a guest's xenstore."""
    with place.connect(name) as client:
        client.call("xenstore.remove", {"path": path})
    emit({"removed": path}, [])
