"""The demo's tour hands the guest's console over by xenpvctl."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from lab.tour import Tour


def test_the_person_sees_a_fresh_prompt_only(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []

    def call(method: str, **params: Any) -> dict[str, int]:
        done.append((method, params))
        return {"end": 4711}

    tour = Tour.__new__(Tour)
    tour._folder = tmp_path
    monkeypatch.setattr(tour, "call", call)
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: done.append(argv[-5:]))
    tour.console()
    assert done == [
        ("console.read", {"since": -1}),
        ("console.write", {"text": "\n"}),
        ["console", "demo", "--steal", "--since", "4711"],
    ]
    assert "You are at the guest's shell" in capsys.readouterr().out
