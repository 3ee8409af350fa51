"""The list of events is what the code publishes."""

from __future__ import annotations

import ast
from pathlib import Path

from xenpvd.rpc.events import EVENTS

PACKAGE = Path(__file__).parents[2] / "xenpvd"


def published() -> dict[str, set[str | None]]:
    """The members of each event's data, by its name; None among them where some come from elsewhere (**)."""
    found: dict[str, set[str | None]] = {}
    for file in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr.lstrip("_") != "publish" or not call.args:
                continue
            (name,) = call.args
            assert isinstance(name, ast.Constant), f"{file}:{call.lineno}: an event's name is written out"
            keys = {word.arg.rstrip("_") if word.arg else None for word in call.keywords}
            found[name.value] = found.get(name.value, set()) | keys
    return found


def test_every_event_is_listed_and_no_other() -> None:
    assert set(EVENTS) == {*published(), "events.lost"}  # which a subscription makes up


def test_its_members_are_listed() -> None:
    wrong = {}
    for name, keys in published().items():
        listed = set(EVENTS[name].data)
        if not keys - {None} <= listed or (None not in keys and keys != listed):
            wrong[name] = keys
    assert wrong == {}
