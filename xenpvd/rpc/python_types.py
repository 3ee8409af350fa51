"""The API in Python's types, for ``xenpvd.client``: made from the OpenRPC document, as its page is.

``python -m xenpvd.rpc --python shapes`` prints ``client/shapes.py``; ``params`` and ``methods`` are the
others. Results stay the plain dicts that JSON makes; a TypedDict says what is in them. So whatever a
newer daemon adds is there, unknown to the type checker, and does no harm.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from xenpvd.rpc.registry import Method
from xenpvd.rpc.schema import REF, Schema

#: They change what a connection is for, or take more than JSON: the client has other methods for them.
STREAMING = (
    "console.attach", "events.subscribe", "events.unsubscribe", "fd.add", "xenstore.unwatch",
    "xenstore.watch",
)  # fmt: skip

_PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def modules(api: Schema, declared: Mapping[str, Method]) -> dict[str, str]:
    """The text of each module of ``xenpvd.client`` that is made from the API, by its name."""
    return {"shapes": _shapes(api), "params": _params(api, declared), "methods": _methods(api, declared)}


def _shapes(api: Schema) -> str:
    components: dict[str, Schema] = api["components"]["schemas"]
    asked = _reachable(
        [param["schema"] for method in api["methods"] for param in method["params"]], components
    )
    body = [_shape(name, schema, name in asked) for name, schema in sorted(components.items())]
    return _module("What methods answer, and larger things that they take", "shapes", body, {})


def _params(api: Schema, declared: Mapping[str, Method]) -> str:
    params = {
        declared[method["name"]].params.__name__: method["params"]
        for method in _typed(api)
        if method["params"]
    }
    body = []
    for name, members in sorted(params.items()):
        fields = ((_python_name(m["name"]), _type(m["schema"]), m["required"]) for m in members)
        body.append(
            "\n".join([f"class {name}(TypedDict):", *(f"    {f}: {_member(*m)}" for f, *m in fields)])
        )
    return _module("What methods take", "params", body, {"shapes": list(api["components"]["schemas"])})


def _methods(api: Schema, declared: Mapping[str, Method]) -> str:
    waiting = sorted(name for name, method in declared.items() if method.wait)
    params = {method["name"]: declared[method["name"]].params.__name__ for method in _typed(api)}
    calls = "\n\n".join(_call(method, params[method["name"]]) for method in _typed(api))
    body = [
        f"{_names('WAITING', _WAITING, waiting)}\n{_names('STREAMING', _STREAMING, sorted(STREAMING))}",
        f"{_CLASS}\n\n{calls}",
    ]
    ours = {"params": list(params.values()), "shapes": list(api["components"]["schemas"])}
    return _module("Every method with its types", "methods", body, ours, "# mypy: no-warn-return-any\n")


def _typed(api: Schema) -> list[Schema]:
    return [method for method in api["methods"] if method["name"] not in STREAMING]


def _module(job: str, name: str, body: list[str], ours: dict[str, list[str]], pragma: str = "") -> str:
    """``ours``: the names that may be used of each of our modules."""
    text = "\n\n\n".join(body)
    words = set(re.findall(r"\w+", text))
    head = [f'"""{job}. Made by ``python -m xenpvd.rpc --python {name}``."""', pragma]
    head += ["from __future__ import annotations", ""]
    if "ABC" in words:
        head += ["from abc import ABC, abstractmethod"]
    head += [f"from typing import {', '.join(word for word in _TYPING if word in words)}", ""]
    for module, names in ours.items():
        used = "".join(f"    {one},\n" for one in sorted(words.intersection(names)))
        head += [f"from xenpvd.client.{module} import (\n{used})"]
    return "\n".join([*head, *([""] if ours else []), *([""] if text.startswith("class") else []), text, ""])


def _names(name: str, comment: str, values: list[str]) -> str:
    return "\n".join([f"#: {comment}", f"{name} = (", *(f'    "{value}",' for value in values), ")"])


_WAITING = "They merely wait: each has a connection of its own, whose end gives it up at the daemon, too."
_STREAMING = "They change what a connection is for, or take more than JSON."
_CLASS = '''\
class Methods(ABC):
    """The API's methods: ``drive.add`` is :meth:`drive_add`. Parameters go by name; results are JSON's.

    A parameter whose name is Python's own takes an underscore: ``for_="devices"``.
    """

    @abstractmethod
    async def call(self, method: str, /, **params: Any) -> Any:
        """Any method by the API's name, without types."""'''

_TYPING = ("Any", "Literal", "NotRequired", "TypeAlias", "TypedDict", "Unpack")


def _shape(name: str, schema: Schema, asked: bool) -> str:
    if "enum" in schema:
        return f"{name}: TypeAlias = {_type(schema)}"
    # what is always sent need not be given
    required = schema.get("required", []) if asked else list(schema["properties"])
    members = {key: (_type(member), key in required) for key, member in schema["properties"].items()}
    if not all(key.isidentifier() for key in members):
        # a name with a hyphen: TypedDict's other syntax, whose types are no annotations and so are text
        lines = (f'        "{key}": {_quoted(_member(*member))},' for key, member in members.items())
        return "\n".join([f'{name} = TypedDict(\n    "{name}",\n    {{', *lines, "    },\n)"])
    return "\n".join([f"class {name}(TypedDict):", *(f"    {k}: {_member(*m)}" for k, m in members.items())])


def _member(type_: str, required: bool) -> str:
    return type_ if required else f"NotRequired[{type_}]"


def _quoted(text: str) -> str:
    return f"'{text}'" if '"' in text else f'"{text}"'


def _python_name(name: str) -> str:
    return f"{name}_" if name == "for" else name


def _call(method: Schema, params: str) -> str:
    takes, gives = (f", **params: Unpack[{params}]", ", **params") if method["params"] else ("", "")
    result = _type(method["result"]["schema"])
    name = method["name"].replace(".", "_")
    told = textwrap.fill(f'"""{method["summary"]}"""', 102, initial_indent=" " * 8, subsequent_indent=" " * 8)
    lines = [f"    async def {name}(self{takes}) -> {result}:", told]
    return "\n".join([*lines, f'        return await self.call("{method["name"]}"{gives})'])


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REF)
    if choices := schema.get("anyOf", schema.get("oneOf", schema.get("allOf"))):
        return " | ".join(_type(choice) for choice in choices)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if values:
        return f"Literal[{', '.join(_literal(value) for value in values)}]"
    kind = schema.get("type")
    if kind == "array":
        return f"list[{_type(schema.get('items', {}))}]"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"dict[str, {_type(inner) if isinstance(inner, dict) else 'Any'}]"
    return _PLAIN.get(str(kind), "Any")


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _reachable(schemas: list[Schema], components: Mapping[str, Schema]) -> set[str]:
    """The names of all components that ``schemas`` lead to."""
    found, ahead = set[str](), list(schemas)
    while ahead:
        for name in _references(ahead.pop()):
            if name not in found:
                found.add(name)
                ahead.append(components[name])
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix(REF)
        for child in value.values():
            yield from _references(child)
    elif isinstance(value, list):
        for child in value:
            yield from _references(child)
