"""``python -m lab.man``: write the parts of docs/man that repeat what the code says.

A page is prose with such parts between ``.\\" BEGIN what of whom`` and ``.\\" END``: options and verbs come
from click, keys from the models of a definition and of gateway.toml, methods, events and errors from the
API's document.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from pydantic import BaseModel, BeforeValidator
from pydantic_core import ErrorDetails

from lab.mdoc import escape, items, prose, words
from lab.paths import CHECKOUT
from xenpvd import config
from xenpvd.__main__ import main as daemon
from xenpvd.config import (
    AccessConfig,
    ChannelConfig,
    ConsoleConfig,
    DiskConfig,
    GuestConfig,
    LimitsConfig,
    MetricsConfig,
    ReadyConfig,
    ShimConfig,
)
from xenpvd.ctl.cli import cli
from xenpvd.gateway.__main__ import main as gateway
from xenpvd.gateway.config import ClientConfig, GatewayConfig, TlsConfig
from xenpvd.rpc.methods.daemon import document
from xenpvd.rpc.schema import kind

PAGES = CHECKOUT / "docs" / "man"
COMMANDS: dict[str, click.Command] = {"xenpvd": daemon, "xenpvctl": cli, "xenpvd-gateway": gateway}
TABLES: dict[str, type[BaseModel]] = {
    "top": GuestConfig,
    "shim": ShimConfig,
    "metrics": MetricsConfig,
    "console": ConsoleConfig,
    "channel": ChannelConfig,
    "ready": ReadyConfig,
    "access": AccessConfig,
    "disk": DiskConfig,
    "disk.limits": LimitsConfig,
}
#: those of gateway.toml
GATEWAY_TABLES: dict[str, type[BaseModel]] = {
    "gateway": GatewayConfig, "tls": TlsConfig, "client": ClientConfig
}  # fmt: skip
#: said once for all verbs
EVERYWHERE = ("--json", "--help")

_PART = re.compile(r'^(\.\\" BEGIN (\w+) ?(.*)\n)(?:.*\n)*?(\.\\" END)$', re.MULTILINE)


def written(page: str) -> str:
    """The text of a page with its parts as they should be."""

    def part(found: re.Match[str]) -> str:
        lines = PARTS[found[2]](found[3].split())
        return found[1] + "".join(f"{line}\n" for line in lines) + found[4]

    return _PART.sub(part, page)


def options(names: list[str]) -> Iterator[str]:
    """The options of a command."""
    yield from items(_options(COMMANDS[names[0]], skip=()))


def _options(command: click.Command, skip: Iterable[str]) -> Iterator[tuple[str, Iterator[str]]]:
    context = click.Context(command, **command.context_settings)
    for option in command.get_params(context):
        if isinstance(option, click.Option) and not set(option.opts) & set(skip):
            value = "" if option.is_flag else f" Ar {words(_value(option))}"
            heads = [f"Fl {words(name.removeprefix('-'))}{value}" for name in option.opts]
            heads += [f"Fl {words(name.removeprefix('-'))}" for name in option.secondary_opts]
            yield " , ".join(heads), prose(_about(option))


def _value(param: click.Parameter) -> str:
    if param.metavar:
        return param.metavar
    if isinstance(param.type, click.Choice):
        return " | ".join(map(str, param.type.choices))
    if isinstance(param, click.Argument):
        return str(param.name).upper()
    if isinstance(param.type, click.Path):
        return "FILE" if param.type.file_okay else "DIRECTORY"
    number = param.type.name in ("integer", "integer range", "float")
    return "N" if number else str(param.name).upper()


def _about(option: click.Option) -> str:
    text = option.help or ""
    if option.show_default and not option.is_flag:
        text += f" Default: {option.default}."
    if isinstance(option.envvar, str) and option.envvar not in text:
        text += f" Environment: {option.envvar}."
    return text


def verbs(names: list[str]) -> Iterator[str]:
    """Verbs with their arguments and options; a group stands for all of its verbs."""

    def entries() -> Iterator[tuple[str, Iterator[str]]]:
        for name in names:
            command = cli.commands[name]
            if isinstance(command, click.Group):
                for verb, each in command.commands.items():
                    yield _head(f"{name} {verb}", each), _verb(each)
            else:
                yield _head(name, command), _verb(command)

    yield from items(entries())


def _head(name: str, command: click.Command) -> str:
    head = f"Cm {words(name)}"
    for argument in command.params:
        if isinstance(argument, click.Argument):
            value = f"Ar {words(_value(argument).strip('[]'))}"
            if argument.nargs == -1 and "..." not in value:
                value += " ..."
            head += f" {value}" if argument.required else f" Op {value}"
    return head


def _verb(command: click.Command) -> Iterator[str]:
    yield from prose(inspect.cleandoc(command.help or ""))
    yield from items(_options(command, EVERYWHERE), compact=True)


def keys(names: list[str]) -> Iterator[str]:
    """The keys of one of :data:`TABLES` or :data:`GATEWAY_TABLES`."""
    tables = TABLES if names[0] in TABLES else GATEWAY_TABLES
    table = tables[names[0]]
    schemas = table.model_json_schema()["properties"]

    def entries() -> Iterator[tuple[str, Iterator[str]]]:
        for name, field in table.model_fields.items():
            is_table = table in (GuestConfig, GatewayConfig) and name in tables
            if not is_table and "$ref" not in schemas[name]:
                size = any(isinstance(meta, BeforeValidator) for meta in field.metadata)
                yield f"Ic {words(name)}", _key(schemas[name], size, field.is_required())

    yield from items(entries())


def _key(schema: dict[str, Any], size: bool, required: bool) -> Iterator[str]:
    choices = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    told = schema["description"].rstrip(".") + "."
    if told.split()[0].rstrip(":") not in schema.get("enum", ()):  # "pv" stays so
        told = told[:1].upper() + told[1:]
    default = schema.get("default")
    if required:
        told += " Must be given."
    elif default not in (None, "", []):
        told += f" Default: {_literal(default, size)}."
    values = ", or ".join(filter(None, (_values(choice, size) for choice in choices)))
    yield from prose(f"{told} {values[:1].upper()}{values[1:]}" + ("." if values else ""))


def _values(schema: dict[str, Any], size: bool) -> str:
    """What a key takes; nothing, if its default tells."""
    low, high, pattern = schema.get("minimum"), schema.get("maximum"), schema.get("pattern", "")
    if "enum" in schema:
        return f"one of {', '.join(map(_literal, schema['enum']))}"
    if "const" in schema:
        return _literal(schema["const"])
    if schema["type"] in ("integer", "number"):
        bounds = f" from {_literal(low, size)} to {_literal(high, size)}" if high is not None else ""
        return f"a number{bounds}" + (", or a text with K, M, G or T" if size else "")
    if schema["type"] == "array":
        return f"a list of texts, {schema['maxItems']} at most"
    if schema["type"] == "object":
        return f"a table of texts, {schema['maxProperties']} at most"
    if schema["type"] == "boolean":
        return ""
    if pattern:
        told = config.words(_mismatch(pattern))
        _, path, more = told.partition("an absolute path")  # in a file any will do
        if path:
            return f"a path{more}"
        return f"a text; {told}" if told else "a text"
    return f"a text, {schema['maxLength']} characters at most"


def _mismatch(pattern: str) -> ErrorDetails:
    return {
        "type": "string_pattern_mismatch", "loc": (), "msg": "", "input": "", "ctx": {"pattern": pattern}
    }  # fmt: skip


def _literal(value: object, size: bool = False) -> str:
    if size and isinstance(value, int):
        for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
            if value and value % (1 << shift) == 0:
                return f'"{value >> shift}{unit}"'
    return json.dumps(value)


def methods(nouns: list[str]) -> Iterator[str]:
    """The methods of these nouns: ``drive`` has ``drive.add`` and so on."""
    yield from items(
        (f"Sy {words(method['name'])} Pq {method['x-role']}", _method(method))
        for method in document()["methods"]
        if method["name"].partition(".")[0] in nouns
    )


def _method(method: dict[str, Any]) -> Iterator[str]:
    yield from prose(method["summary"] + "\n\n" + method.get("description", ""))
    yield from items(map(_param, method["params"]), compact=True)
    yield ".Pp"
    yield f"Result: {escape(_kind(method['result']['schema']))}."


def _param(param: dict[str, Any]) -> tuple[str, Iterator[str]]:
    what = _kind(param["schema"])
    if not param["required"]:
        what += f", default {_literal(param['schema'].get('default'))}"
    summary = f": {param['summary']}" if "summary" in param else ""
    return f"Ar {words(param['name'])}", prose(f"{what}{summary}.")


def shapes(_: list[str]) -> Iterator[str]:
    def entries() -> Iterator[tuple[str, Iterator[str]]]:
        for name, schema in sorted(document()["components"]["schemas"].items()):
            members = (f"{key} {_kind(each)}" for key, each in schema.get("properties", {}).items())
            told = ", ".join(map(str, schema["enum"])) if "enum" in schema else "; ".join(members)
            yield f"Sy {words(name)}", prose(f"{told}.")

    yield from items(entries())


def notifications(_: list[str]) -> Iterator[str]:
    yield from items(
        (f"Sy {words(note['name'])} Pq {words(_kind(note['params']))}", prose(note["summary"]))
        for note in document()["x-notifications"]
    )


def events(_: list[str]) -> Iterator[str]:
    def about(event: dict[str, Any]) -> Iterator[str]:
        yield from prose(event["summary"])
        if event["data"]:
            yield f"Data: {escape(', '.join(event['data']))}."

    yield from items((f"Sy {words(event['name'])}", about(event)) for event in document()["x-events"])


def errors(_: list[str]) -> Iterator[str]:
    yield from items(
        (f"Er {words(reason)} Pq {error['code']}", prose(error["message"]))
        for reason, error in document()["components"]["errors"].items()
    )


def _kind(schema: dict[str, Any]) -> str:
    return kind(schema).replace("`", "")


PARTS: dict[str, Callable[[list[str]], Iterator[str]]] = {
    part.__name__: part
    for part in (options, verbs, keys, methods, shapes, notifications, events, errors)
}  # fmt: skip


def main() -> int:
    for path in sorted(PAGES.iterdir()):
        before = path.read_text(encoding="utf-8")
        if (after := written(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(CHECKOUT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
