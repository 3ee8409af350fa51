"""``python -m bench``: one after the other, whatever becomes of one."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import chart, docs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run; bench.rpc breaks. Nothing is written."""
    found: list[list[str]] = []

    def call(argv: list[str]) -> int:
        found.append(argv[1:])
        return int("bench.rpc" in argv)

    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(chart, "write", lambda reports: None)
    monkeypatch.setattr(docs, "write", lambda reports: None)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    return bench.main()


def test_each_name_is_a_benchmark_and_each_benchmark_has_its_name() -> None:
    here = Path(bench.__file__).parent
    runnable = {path.stem for path in here.glob("*.py") if "def main() -> None" in path.read_text()}
    assert runnable == set(bench.NAMES)
    assert all(find_spec(f"bench.{name}") for name in bench.NAMES)


def test_one_that_breaks_stops_no_other(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 1
    assert [argv[1] for argv in started] == [f"bench.{name}" for name in bench.NAMES]
    assert "bench: rpc broke" in capsys.readouterr().err


def test_some_of_them_with_other_rounds(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--rounds", "2", "start", "disk") == 0
    assert started == [["-m", f"bench.{name}", "--rounds=2"] for name in ("start", "disk")]


def test_drawing_measures_nothing(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--draw") == 0
    assert started == []


def test_a_name_that_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "rcp")
    assert "there is no rcp; there are: start, density, rpc" in capsys.readouterr().err
