"""The OpenRPC document of this API (https://spec.open-rpc.org, 1.3.2), made from the registry.

``python -m xenpvd.rpc`` prints it, ``--markdown`` a page for people; both are kept in schemas/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from xenpvd.rpc import models, results
from xenpvd.rpc.errors import (
    CODES,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
)
from xenpvd.rpc.events import EVENTS
from xenpvd.rpc.registry import Method

REF = "#/components/schemas/"

#: What the server sends unasked.
NOTIFICATIONS: dict[str, tuple[type[results.Result], str]] = {
    "daemon.hello": (results.Hello, "The greeting, first on every connection."),
    "xenstore.changed": (results.XenstoreChanged, "A watched node has changed; sent after xenstore.watch."),
    "event": (results.EventNote, "Something happened; sent after events.subscribe."),
}

Schema = dict[str, Any]


def document(methods: Mapping[str, Method]) -> Schema:
    """The OpenRPC document for ``methods``."""
    adapters: list[tuple[str, Any, TypeAdapter[Any]]] = []
    for method in methods.values():
        adapters.append((f"{method.name} params", "validation", TypeAdapter(method.params)))
        adapters.append((f"{method.name} result", "serialization", method.result))
    for name, (model, _) in NOTIFICATIONS.items():
        adapters.append((name, "serialization", TypeAdapter(model)))
    schemas, shared = TypeAdapter.json_schemas(adapters, ref_template=REF + "{model}")
    components: Schema = shared["$defs"]
    named = {str(name): _draft7(schema) for (name, _), schema in schemas.items()}
    components = {name: _draft7(schema) for name, schema in components.items()}

    def params_of(method: Method) -> list[Schema]:
        # A method's parameters are listed one by one, so their model is no component of its own.
        model = _resolve(named[f"{method.name} params"], components)
        required = model.get("required", [])
        return [
            _descriptor(name, schema, name in required)
            for name, schema in model.get("properties", {}).items()
        ]

    entries = [
        {
            "name": method.name,
            "summary": method.summary,
            **({"description": method.description} if method.description else {}),
            "paramStructure": "by-name",
            "params": params_of(method),
            "result": {"name": "result", "schema": named[f"{method.name} result"]},
            "errors": [{"$ref": f"#/components/errors/{reason}"} for reason in errors()],
            "x-role": method.role,
        }
        for method in methods.values()
    ]
    for method in methods.values():
        components.pop(named[f"{method.name} params"].get("$ref", "").removeprefix(REF), None)
    return {
        "openrpc": "1.3.2",
        "info": {"title": "xenpvd", "version": models.API, "license": {"name": "MIT"}},
        "methods": entries,
        "components": {"schemas": components, "errors": errors()},
        "x-notifications": [
            {"name": name, "summary": summary, "params": named[name]}
            for name, (_, summary) in NOTIFICATIONS.items()
        ],
        "x-events": [{"name": name, **event._asdict()} for name, event in EVENTS.items()],
    }


def errors() -> dict[str, Schema]:
    """Every error by its reason word."""
    found: dict[str, Schema] = {
        "PARSE_ERROR": {"code": PARSE_ERROR, "message": "The message is no JSON."},
        "INVALID_REQUEST": {"code": INVALID_REQUEST, "message": "The message is no request."},
        "METHOD_NOT_FOUND": {"code": METHOD_NOT_FOUND, "message": "There is no such method."},
        "INTERNAL": {"code": INTERNAL_ERROR, "message": "A fault of the daemon; its log has the incident."},
    }
    for kind, code in CODES.items():
        summary = " ".join((kind.__doc__ or "").split()).split(". ")[0].rstrip(".") + "."
        found[kind.reason] = {"code": code, "message": summary}
    found["FAILED"]["message"] = "Anything else that the message explains."
    found["VALIDATION"]["message"] = "The parameters do not fit; data.errors says where."
    return dict(sorted(found.items(), key=lambda item: item[1]["code"]))


def _draft7(schema: Any) -> Any:
    """OpenRPC's schemas are of JSON Schema's draft 7, in which nothing counts that stands beside a $ref;
    pydantic writes a default there, as later drafts allow."""
    if isinstance(schema, list):
        return [_draft7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and len(schema) > 1:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {"allOf": [{"$ref": schema["$ref"]}], **rest}
    return {key: _draft7(value) for key, value in schema.items()}


def _resolve(schema: Schema, components: Schema) -> Schema:
    reference = schema.get("$ref")
    return components[reference.removeprefix(REF)] if reference else schema


def _descriptor(name: str, schema: Schema, required: bool) -> Schema:
    schema = dict(schema)
    description = schema.pop("description", None)
    return {
        "name": name,
        **({"summary": description} if description else {}),
        "required": required,
        "schema": schema,
    }


def markdown(api: Schema) -> str:
    """The document as a page."""
    lines = [
        f"# The RPC API of xenpvd, {api['info']['version']}",
        "",
        "Generated by `python -m xenpvd.rpc --markdown`; openrpc.json has the types in full.",
        "",
    ]
    for method in api["methods"]:
        lines += [f"## {method['name']} ({method['x-role']})", "", method["summary"], ""]
        if "description" in method:
            lines += [method["description"], ""]
        for param in method["params"]:
            default = param["schema"].get("default")
            type_ = kind(param["schema"]) + (
                "" if param["required"] else f", default `{json.dumps(default)}`"
            )
            lines.append(
                f"- `{param['name']}` ({type_}){': ' + param['summary'] if 'summary' in param else ''}"
            )
        lines += [""] if method["params"] else []
        lines += [f"Result: {kind(method['result']['schema'])}", ""]
    lines += ["## Shapes", ""]
    for name, schema in sorted(api["components"]["schemas"].items()):
        if "enum" in schema:
            lines += [f"- **{name}**: {', '.join(map(str, schema['enum']))}"]
        else:
            members = (f"`{key}` {kind(member)}" for key, member in schema.get("properties", {}).items())
            lines += [f"- **{name}**: {', '.join(members)}"]
    lines += ["", "## Notifications", ""]
    lines += [
        f"- `{note['name']}` ({kind(note['params'])}): {note['summary']}" for note in api["x-notifications"]
    ]
    lines += ["", "## Events", ""]
    for event in api["x-events"]:
        data = ", ".join(f"`{key}`" for key in event["data"]) or "no data"
        lines.append(f"- **{event['name']}** ({data}): {event['summary']}")
    lines += [
        "",
        "## Errors",
        "",
        "`error.data.reason` is the word to compare.",
        "",
        "| code | reason | meaning |",
    ]
    lines += ["| ---: | --- | --- |"]
    lines += [
        f"| {e['code']} | {reason} | {e['message']} |" for reason, e in api["components"]["errors"].items()
    ]
    return "\n".join(lines) + "\n"


def kind(schema: Schema) -> str:
    """A type in a few words, values in backticks."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REF)
    if choices := schema.get("anyOf", schema.get("oneOf", schema.get("allOf"))):
        return " or ".join(kind(choice) for choice in choices)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`" if isinstance(schema["const"], str) else json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if "items" in schema else "list"
    low, high = schema.get("minimum"), schema.get("maximum")
    limits = f" {low:.0f} to {high:.0f}" if low is not None and high is not None else ""
    return str(schema.get("type", "any")) + limits
