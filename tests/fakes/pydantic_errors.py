"""What pydantic can find fault with in a model, by the model's own core schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

#: types of error by the node of the schema that raises them; of a node that is not here nobody has thought
RAISED: dict[str, tuple[str, ...]] = {
    "str": ("string_type",),
    "int": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "float": ("float_type", "float_parsing"),
    "bool": ("bool_type", "bool_parsing"),
    "literal": ("literal_error",),
    "tuple": ("tuple_type",),
    "list": ("list_type",),
    "dict": ("dict_type",),
    "model": ("model_type",),
    "model-fields": ("missing", "extra_forbidden"),
    "tagged-union": ("union_tag_invalid", "union_tag_not_found"),
    # the words are the function's own
    "function-before": (),
    "function-after": (),
    # these only hold another
    **dict.fromkeys(("any", "model-field", "default", "nullable", "definitions", "definition-ref"), ()),
}
#: by the key that asks for it, and the context
BOUNDS: dict[str, dict[str, str]] = {
    "ge": {"int": "greater_than_equal", "float": "greater_than_equal"},
    "le": {"int": "less_than_equal", "float": "less_than_equal"},
    "lt": {"int": "less_than", "float": "less_than"},
    "gt": {"int": "greater_than", "float": "greater_than"},
    "multiple_of": {"int": "multiple_of", "float": "multiple_of"},
    "min_length": dict.fromkeys(("tuple", "list", "dict"), "too_short") | {"str": "string_too_short"},
    "max_length": dict.fromkeys(("tuple", "list", "dict"), "too_long") | {"str": "string_too_long"},
    "pattern": {"str": "string_pattern_mismatch"},
}
CONTEXT = {"expected": "'a' or 'b'", "discriminator": "'op'", "expected_tags": "'a', 'b'"}


def possible(model: type[BaseModel]) -> Iterator[ErrorDetails]:
    """One of each that ``model`` can raise, with pydantic's own words as its message."""
    yield from _of(model.__pydantic_core_schema__)


def _of(node: Any) -> Iterator[ErrorDetails]:
    if isinstance(node, list | tuple):
        for each in node:
            yield from _of(each)
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if isinstance(kind, str) and kind not in ("no-info", "with-info"):  # a function's
        for type_ in RAISED[kind]:
            yield _error(type_, CONTEXT)
        for bound, types in BOUNDS.items():
            if bound in node and kind in types:
                yield _error(types[kind], {bound: node[bound]})
        if node.get("allow_inf_nan") is False:
            yield _error("finite_number", {})
    for key, each in node.items():
        if key not in ("metadata", "serialization", "config", "default"):
            yield from _of(each)


def _error(type_: str, context: dict[str, Any]) -> ErrorDetails:
    return {"type": type_, "loc": (), "msg": "Input should be pydantic's", "input": None, "ctx": context}
